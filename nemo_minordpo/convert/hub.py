"""Push an exported folder to the Hugging Face hub."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nemo_minordpo import file_names
from nemo_minordpo.errors import UserError, one_line

_OF_THE_HUB = {".gitattributes"}  # what a new repository holds


def require_repo_name(name: str, *, option: str) -> None:
    """Raise UserError unless `name` is OWNER/NAME, as the hub allows it; `option` is what it was given to."""
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise UserError(f"{option}={name}: {one_line(error)}") from error
    if "/" not in name:
        raise UserError(f"{option}={name}: OWNER/NAME is needed")


def push(folder: Path, name: str, *, private: bool = False, overwrite: bool = False) -> str:
    """Upload a folder, but not its manifest, to a repository, which is created if need be; return its address.

    Args:
        folder: an exported folder.
        name: OWNER/NAME.
        private: the repository must not be public; False = a new one is as its owner's default says.
        overwrite: replace all files of an existing repository; its history keeps them.

    Raises:
        UserError: there is no token or no network, the hub refuses, or the repository holds files and `overwrite` is
            False, or is public and `private` is True.
    """
    from huggingface_hub import HfApi, get_token

    failed = f"{folder} is exported, but not pushed to {name}"
    option = "--private " if private else ""
    without = f"--exclude {file_names.MANIFEST}"  # it names files of this machine
    later = f"`huggingface-cli upload {option}{name} {folder} {without}` pushes it without exporting again"
    if get_token() is None:
        raise UserError(f"{failed}: no token: set HF_TOKEN or run `huggingface-cli login`; then {later}")
    api = HfApi()
    with _inone_line(failed, later):
        api.create_repo(name, exist_ok=True, private=private or None)
        found = api.model_info(name)
    _require_free(found, failed, private=private, overwrite=overwrite)
    with _inone_line(failed, later):
        # a file that stays could be read in place of the new weights
        api.upload_folder(
            repo_id=name, folder_path=folder, ignore_patterns=file_names.MANIFEST, delete_patterns="*",
            commit_message="Export from nemo-minordpo",
        )  # fmt: skip
    return f"{api.endpoint}/{name}"


def _require_free(found: Any, failed: str, *, private: bool, overwrite: bool) -> None:
    """Raise UserError if a repository, as HfApi.model_info describes it, must not be written to."""
    if private and not found.private:
        raise UserError(f"{failed}: it exists and is public: make it private first, or leave out --private")
    held = sorted({file.rfilename for file in found.siblings or []} - _OF_THE_HUB)
    if held and not overwrite:
        shown = ", ".join(held[:3]) + (", ..." if held[3:] else "")
        raise UserError(
            f"{failed}: it holds {len(held)} files already ({shown}): choose another name, or pass --overwrite to "
            "replace them"
        )


@contextmanager
def _inone_line(failed: str, later: str) -> Iterator[None]:
    """Turn what huggingface_hub raises into a UserError.

    OSError: no network, offline, a refusal by the hub; RuntimeError: a transfer that breaks (hf_xet); ValueError: a
    card that the hub does not accept.
    """
    from huggingface_hub import constants
    from requests import ConnectionError, Timeout

    try:
        yield
    except (ConnectionError, Timeout) as error:
        raise UserError(f"{failed}: no connection to {constants.ENDPOINT}; {later}") from error
    except (OSError, RuntimeError, ValueError) as error:
        raise UserError(f"{failed}: {one_line(error)}; {later}") from error
