"""Where a model and its pairs came from: manifests pass it on, so that an exported model can tell on any machine."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from nemo_minordpo import file_names

Origin = dict[str, Any]

_PASSED_ON = ("stage", "inputs", "roles", "settings", "counts")
# First word of a stage -> the files that its manifest.json describes.
_OUTPUTS = {"train": (file_names.NEMO,), "prepare": (file_names.TRAIN, file_names.VALIDATION)}


def manifest_in(path: Path) -> dict[str, Any]:
    """The manifest in a file; {} if there is none, or an unrelated file of that name."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) and "stage" in found else {}


def run_of(output: Path) -> Path | None:
    """The folder of the run behind `output`: a run folder, a model or checkpoint in one; None for anything else."""
    folders = (output, *output.absolute().parents[:2])
    return next((one for one in folders if manifest_in(one / file_names.MANIFEST).get("stage") == "train"), None)


def origin_of(file: Path) -> Origin:
    """What the manifest next to a `.nemo` or a file of pairs says about how it was made; {} if there is none."""
    found = manifest_in(file_names.manifest_of_nemo(file))
    if not found:
        found = manifest_in(file.absolute().parent / file_names.MANIFEST)
        if file.name not in _OUTPUTS.get(str(found.get("stage")).partition(" ")[0], ()):
            return {}
    return {key: found[key] for key in _PASSED_ON if key in found}


def origins_of(files: Iterable[Path]) -> dict[str, Origin]:
    """:func:`origin_of` of each file, for those that have one, by path."""
    found = {str(file): origin_of(file) for file in files}
    return {file: origin for file, origin in found.items() if origin}
