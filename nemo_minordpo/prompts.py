"""How the prompts of pairs were written, as manifests hand it on: from the pairs to the run to the exported model.

A way of writing is {"template": "plain" or "chat", "system": ..., "date": ..., "template_options": ...}, as in the
settings of `prepare`.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

Way = dict[str, Any]

# Of what an older manifest does not have.
_DEFAULTS: Way = {"template": "plain", "system": None, "date": None, "template_options": {}}


def ways_of_pairs(files: Iterable[Path]) -> list[Way]:
    """The ways in which the prompts of these files were written, as far as manifests beside them say."""
    ways: list[Way] = []
    for folder in dict.fromkeys(file.parent for file in files):
        ways += [way for way in ways_of(folder) if way not in ways]
    return ways


def ways_of_run(output: Path) -> list[Way]:
    """The same of the pairs of the run whose model or checkpoint `output` is; [] where that is not known."""
    folders = (output, *output.absolute().parents[:2])
    return next((ways_of(folder) for folder in folders if _manifest(folder).get("stage") == "train"), [])


def ways_of(folder: Path) -> list[Way]:
    """The same of the pairs in a folder, or of those that the run or the exported model in it was trained on."""
    manifest = _manifest(folder)
    settings = manifest.get("settings", {})
    if str(manifest.get("stage")).startswith("prepare ") and "template" in settings:
        return [{name: settings.get(name, default) for name, default in _DEFAULTS.items()}]
    return manifest.get("prompts", [])


def _manifest(folder: Path) -> dict[str, Any]:
    """{} where there is none, or a file of that name that is another's."""
    try:
        found = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) and "stage" in found else {}
