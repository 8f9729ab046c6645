"""Names of models and data sets on the Hugging Face hub, and the download of a model.

python -m nemo_minordpo.hub OWNER/NAME FOLDER
"""

import re
import sys
from pathlib import Path

from nemo_minordpo.errors import UserError, one_line

# Weights in other formats than the one that is read, which would double the download
_NOT_READ = ("*.gguf", "*.pth", "*.onnx", "*.msgpack", "*.h5", "original/*", "*.ot")


def is_hub_name(name: str) -> bool:
    """Whether a text names something on the hub, rather than a file or folder here."""
    return re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", name) is not None and not Path(name).exists()


def download_model(name: str, folder: Path) -> None:
    """Download a model's files; a rerun resumes.

    Args:
        name: OWNER/NAME on the hub.
        folder: where they go.

    Raises:
        UserError: the hub has no such model, refuses access, or cannot be reached.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        snapshot_download(name, local_dir=folder, ignore_patterns=list(_NOT_READ))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise UserError(
            f"{name}: cannot be downloaded from the Hugging Face hub ({one_line(error)}); download it where there is a "
            "network, and name the folder"
        ) from error


def main() -> None:
    name, folder = sys.argv[1:]
    try:
        download_model(name, Path(folder))
    except UserError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
