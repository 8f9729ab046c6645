"""A model's files besides its weights: tokenizer, chat template, config, generation config, card and licence.

NeMo stores none of them in a checkpoint, only the path of a folder, which is wrong on any other machine. So they travel
next to the checkpoint: `base.tokenizer` next to `base.nemo`, and `model.tokenizer` next to a run's `model.nemo`.
"""

import shutil
from pathlib import Path

from nemo_minordpo.errors import UserError

TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json",
    "vocab.txt", "merges.txt", "tokenizer.model", "chat_template.jinja", "chat_template.json",
)  # fmt: skip
# The model's card and licence: what is trained from it inherits the licence.
CARD, LICENSES = "README.md", ("LICENSE", "LICENSE.txt", "LICENSE.md")
SIDECARS = ("config.json", "generation_config.json", *TOKENIZER_FILES, CARD, *LICENSES)
_SIDECAR_FOLDERS = ("additional_chat_templates",)
_TOKENIZERS = (("tokenizer.json",), ("tokenizer.model",), ("vocab.json", "merges.txt"))


def tokenizer_folder(nemo: Path) -> Path:
    """The folder next to a `.nemo` that holds its sidecars."""
    return nemo.with_name(f"{nemo.stem}.tokenizer")


def copy_sidecars(source: Path, target: Path) -> list[str]:
    """Copy everything but the weights byte for byte; return the copied names.

    Raises:
        UserError: `source` has no tokenizer.
    """
    require_tokenizer(source)
    copied = [name for name in SIDECARS if (source / name).is_file()]
    for name in copied:
        shutil.copyfile(source / name, target / name)
    for name in _SIDECAR_FOLDERS:
        if (source / name).is_dir():
            shutil.copytree(source / name, target / name)
            copied.append(name)
    return copied


def require_tokenizer(folder: Path) -> None:
    """Raise UserError unless `folder` has a tokenizer and no broken links."""
    for name in SIDECARS:
        if (folder / name).is_symlink() and not (folder / name).exists():
            raise UserError(f"{folder / name}: a broken symbolic link; download the file again")
    if not has_tokenizer(folder):
        wanted = ", ".join(" + ".join(names) for names in _TOKENIZERS)
        raise UserError(f"{folder}: no tokenizer in it (one of: {wanted}); copy the model's tokenizer files there")


def has_tokenizer(folder: Path) -> bool:
    return any(all((folder / name).is_file() for name in names) for names in _TOKENIZERS)
