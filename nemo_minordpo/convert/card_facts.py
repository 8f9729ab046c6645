"""What is known about the model that is exported: its run, what it was trained from and on, its licence."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from nemo_minordpo import file_names
from nemo_minordpo.checked_json import read_json_object
from nemo_minordpo.convert.nemo_source import NemoSource
from nemo_minordpo.files import read_lines
from nemo_minordpo.origins import Origin, origin_of, run_of
from nemo_minordpo.records import Manifest, StepMetrics
from nemo_minordpo.sidecars import CARD, LICENSES
from nemo_minordpo.terminal import say

_LICENSE_KEYS = ("license", "license_name", "license_link")
# First words of licence texts -> the hub's names.
_LICENSE_TEXTS = {"apache license version 2.0": "apache-2.0", "mit license": "mit"}
# The folder that huggingface_hub downloads a model to, unless told otherwise.
_HUB_FOLDER = re.compile(r"models--(.+)--(.+)")


@dataclass(frozen=True, kw_only=True)
class Split:
    """The pairs of a split: its files and their digests."""

    files: dict[str, str]
    counts: Mapping[str, int]  # "used", and the number left out by reason; {} if not known


@dataclass(frozen=True, kw_only=True)
class Training:
    """The run that a model is from."""

    folder: Path
    manifest: Manifest
    step: int | None  # the checkpoint's; None: the end of the run
    splits: dict[str, Split]  # those that it has
    metrics: dict[str, StepMetrics]  # split -> its last line up to `step`

    @property
    def recipes(self) -> list[Origin]:
        """How its pairs were made, each way once, as far as that is known."""
        origins = self.manifest.origins
        found = [origins[file] for split in self.splits.values() for file in split.files if file in origins]
        return [origin for place, origin in enumerate(found) if origin not in found[:place]]


@dataclass(frozen=True, kw_only=True)
class BaseModel:
    """The model that training started from."""

    path: Path
    sha256: str | None
    origin: Origin

    @property
    def hub_name(self) -> str | None:
        """Its name on the hub, if it was imported from huggingface_hub's cache."""
        folder = imported_from(self.origin)
        matches = [] if folder is None else filter(None, map(_HUB_FOLDER.fullmatch, folder.parts))
        return next((f"{match[1]}/{match[2]}" for match in matches), None)


def imported_from(origin: Origin) -> Path | None:
    """The Hugging Face folder behind an imported model."""
    if origin.get("stage") != "import-hf":
        return None
    return next((Path(path).parent for path in origin["inputs"] if Path(path).name == "config.json"), None)


def training_of(origin: Path) -> Training | None:
    """The run behind a model or checkpoint; None if there is no run folder around it.

    Raises:
        UserError: the run's manifest is damaged.
    """
    if (run := run_of(origin)) is None:
        return None
    match = file_names.STEP.fullmatch(origin.name)
    step = int(match[1]) if match else None
    manifest = Manifest.read(run)
    return Training(
        folder=run.absolute(),
        manifest=manifest,
        step=step,
        splits={name: _split(run, manifest, name) for name in ("train", "validation") if manifest.roles.get(name)},
        metrics=_last_metrics(run / file_names.METRICS, step=step),
    )


def base_of(source: NemoSource, training: Training | None) -> BaseModel | None:
    """The model that a source was trained from; None if nothing names it."""
    if (path := source.trained_from) is None:
        return None
    name, inputs, origins = str(path), {}, {}
    if training is not None:
        inputs, origins = training.manifest.inputs, training.manifest.origins
    # what the run recorded, if it read that file: the one that is there now may be another
    origin = origins.get(name, {}) if name in inputs else origins.get(name) or origin_of(path)
    return BaseModel(path=path, sha256=inputs.get(name), origin=origin)


def license_of(folder: Path) -> dict[str, Any]:
    """`license`, `license_name` and `license_link` of a model, as the hub names them.

    Args:
        folder: Hugging Face folder, or the sidecars of one: the front matter of its README.md or its LICENSE is read.

    Returns:
        {} if neither says.
    """
    from huggingface_hub import metadata_load

    card = folder / CARD
    try:
        found = (metadata_load(card) or {}) if card.is_file() else {}
    except (ValueError, yaml.YAMLError):  # not UTF-8, not a mapping, not YAML
        say(f"note: {card}: its front matter cannot be read, so the base model's licence is not taken from it")
        found = {}
    if found.get("license"):
        return {key: found[key] for key in _LICENSE_KEYS if found.get(key)}
    text = next((folder / name for name in LICENSES if (folder / name).is_file()), None)
    if text is None:
        return {}
    words = " ".join(re.findall(r"[\w.]+", text.read_text(encoding="utf-8", errors="replace")[:500].lower()))
    known = next((name for start, name in _LICENSE_TEXTS.items() if words.startswith(start)), None)
    return {"license": known} if known else {"license": "other", "license_link": text.name}


def _split(run: Path, manifest: Manifest, name: str) -> Split:
    counts = run / file_names.DATA / name / "counts.json"
    return Split(
        files={file: manifest.inputs[file] for file in manifest.roles[name]},
        counts=read_json_object(counts) if counts.is_file() else {},
    )


def _last_metrics(path: Path, *, step: int | None) -> dict[str, StepMetrics]:
    last: dict[str, StepMetrics] = {}
    for number, text in read_lines(path) if path.is_file() else ():
        try:
            line = StepMetrics.from_json(text)
        except (ValueError, TypeError):  # torn, by a run that was killed while writing
            say(f"note: {path}:{number}: not a line of metrics, left out of the model card")
            continue
        if step is None or line.step <= step:
            last[line.split] = line
    return last
