"""How the prompts of pairs were written, passed on by manifests from the pairs to the run to the exported model.

A way is {"template": "plain" or "chat", "system": ..., "date": ..., "template_options": ...}, as in the settings of
`prepare`.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from nemo_minordpo.file_names import MANIFEST
from nemo_minordpo.origins import manifest_in, run_of

Way = dict[str, Any]

_WRITES_PROMPTS = ("prepare ", "evaluate")  # stages with a way in their settings
# For keys missing in older manifests.
_DEFAULTS: Way = {"template": "plain", "system": None, "date": None, "template_options": {}}


def ways_of_pairs(files: Iterable[Path]) -> list[Way]:
    """The ways in which the prompts of these files were written, according to the manifests next to them."""
    ways: list[Way] = []
    for folder in dict.fromkeys(file.parent for file in files):
        ways += [way for way in ways_of(folder) if way not in ways]
    return ways


def ways_of_run(output: Path) -> list[Way]:
    """The ways of the pairs that the run behind `output`, a model or checkpoint, was trained on; [] if unknown."""
    run = run_of(output)
    return [] if run is None else ways_of(run)


def ways_of(folder: Path) -> list[Way]:
    """The ways of the pairs or answers in a folder, or of the pairs that the run or model in it was trained on."""
    manifest = manifest_in(folder / MANIFEST)
    settings = manifest.get("settings", {})
    if str(manifest.get("stage")).startswith(_WRITES_PROMPTS) and "template" in settings:
        return [{name: settings.get(name, default) for name, default in _DEFAULTS.items()}]
    return manifest.get("prompts", [])
