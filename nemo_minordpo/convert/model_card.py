"""The model card, README.md of an exported folder: what the model was trained from and on, how, and what came of it."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from nemo_minordpo import __version__
from nemo_minordpo.config import DECLARED, LOSS_KEY, LOSS_NAMES, default_of, loss_label, reads, weights_in
from nemo_minordpo.convert.card_facts import (
    BaseModel,
    Split,
    Training,
    base_of,
    imported_from,
    license_of,
    training_of,
)
from nemo_minordpo.convert.lora_weights import Adapters, read_adapters
from nemo_minordpo.convert.nemo_source import NemoSource
from nemo_minordpo.core.metrics import PAIR_METRICS
from nemo_minordpo.origins import Origin, origin_of
from nemo_minordpo.records import OF_LOG_RATIOS
from nemo_minordpo.sidecars import CARD

_NOT_KNOWN = "not known"
# Settings in the table of every card; others are there if they differ from their defaults.
_ALWAYS = {
    "model.dpo.ref_policy_kl_penalty": "beta",
    "model.optim.lr": "learning rate",
    "model.optim.sched.name": "schedule",
    "model.optim.name": "optimizer",
    "model.global_batch_size": "pairs per step",
    "model.seed": "seed",
    "trainer.precision": "precision",
}
_LORA = "model.peft."
_DIGEST = "sha256 of "
_NAMES_A_TOKENIZER = ("tokenizer", "tokenizer.type")  # ends of settings: of a recipe, of a checkpoint's model config
_UNSET: tuple[Any, ...] = (None, [], {})


def write_card(
    folder: Path, *, source: NemoSource, sidecars: Path, output: Path, base_name: str | None, as_peft: bool = False
) -> None:
    """Write the card of a model to `folder`, in place of the base model's if that is there.

    The YAML at its beginning is what the hub reads. Local paths are shortened to their last two parts.

    Args:
        folder: the exported folder, before it is published.
        source: what is exported.
        sidecars: the Hugging Face folder of the base model, or its sidecars, for the licence.
        output: where the folder will be, for the title if there is no run.
        base_name: the base model's name on the hub; None = the one that it was imported from, if known.
        as_peft: only adapters are exported.
    """
    from huggingface_hub import ModelCard, ModelCardData

    training = training_of(source.origin)
    base, license_ = base_of(source, training), license_of(sidecars)
    base_name = base_name or (None if base is None else base.hub_name)
    losses = {} if training is None else weights_in(training.manifest.settings)
    data = ModelCardData(
        library_name="peft" if as_peft else "transformers",
        pipeline_tag="text-generation",
        base_model=base_name,
        datasets=_hub_names(training) or None,
        **license_,
        tags=[*(["dpo"] if training else []), *(name for name in losses if name in LOSS_NAMES), "nemo-minordpo"],
    )
    adapters = None if source.adapters is None else read_adapters(source)
    name = output.name if training is None else training.folder.name
    text = "\n\n".join(
        [
            f"# {name}",
            _summary(training, losses),
            "## Model",
            _model(source, base, license_, base_name=base_name, adapters=adapters, as_peft=as_peft),
            "## Pairs",
            _pairs(training),
            "## Training",
            _settings(training, losses),
            "## Metrics",
            _metrics(training),
            "## Versions",
            _versions(training),
        ]
    )
    ModelCard(f"---\n{data.to_yaml()}\n---\n\n{text}\n").save(folder / CARD)


def _hub_names(training: Training | None) -> list[str]:
    """The data sets on the hub that the pairs were made from."""
    recipes = [] if training is None else training.recipes
    return list(dict.fromkeys(name for recipe in recipes for name in recipe.get("roles", {}).get("hub", [])))


def _summary(training: Training | None, losses: Mapping[str, float]) -> str:
    if training is None:
        return (
            "Converted by nemo-minordpo. There is no record of a training run next to the exported checkpoint, so this "
            "card does not say whether and how the model was trained."
        )
    return f"Trained on pairs of a chosen and a rejected response with the loss {_code(loss_label(losses))}."


def _model(
    source: NemoSource,
    base: BaseModel | None,
    license_: Mapping[str, Any],
    *,
    base_name: str | None,
    adapters: Adapters | None,
    as_peft: bool,
) -> str:
    lines = [f"Exported from {_path(source.origin)}"]
    if base is None:
        lines[0] += _came_from(origin_of(source.origin))
        lines.append(f"Base model: {base_name or _NOT_KNOWN}")
    else:
        named = "" if base_name is None else f"{base_name}, "
        lines.append(f"Base model: {named}{_path(base.path)}{_digest(base.sha256)}{_came_from(base.origin)}")
    if adapters is not None:
        targets = ", ".join(target.rpartition("layers.")[2].removesuffix(".weight") for target in adapters.targets)
        form = "this folder has only the adapters" if as_peft else "merged into the weights"
        lines.append(
            f"LoRA: rank {adapters.rank}, alpha {adapters.alpha:g}, dropout {adapters.dropout:g}, on {targets}; {form}"
        )
    licensed = ", ".join(str(value) for value in license_.values()) or "unknown, see the base model"
    lines.append(f"Licence of the base model: {licensed}")
    return _list(lines)


def _came_from(origin: Origin) -> str:
    """How a `.nemo` was made, after its name; empty if that is not known."""
    if (folder := imported_from(origin)) is not None:
        return f", imported from {_path(folder)}"
    if origin.get("stage") == "train":
        return f", trained in another run with the loss {_code(loss_label(weights_in(origin['settings'])))}"
    return ""


def _pairs(training: Training | None) -> str:
    if training is None:
        return f"{_NOT_KNOWN.capitalize()}."
    if not training.splits:
        return "The run's manifest does not list its files of pairs."
    parts = [_split(name, split) for name, split in training.splits.items()]
    if "validation" not in training.splits:
        parts.append("There were no validation pairs.")
    recipes = [_recipe(recipe) for recipe in training.recipes]
    return "\n\n".join(parts + (recipes or ["How the pairs were made is not known."]))


def _split(name: str, split: Split) -> str:
    left_out = [f"{number:,} left out: {reason}" for reason, number in split.counts.items() if reason != "used"]
    counts = [f"{split.counts['used']:,} pairs", *left_out] if split.counts else ["number of pairs not known"]
    files = [f"{_path(Path(file))}{_digest(sha256)}" for file, sha256 in split.files.items()]
    return f"{name.capitalize()} ({'; '.join(counts)}):\n\n{_list(files)}"


def _recipe(origin: Origin) -> str:
    """How `minordpo prepare` made pairs: sources with digests, counts, settings."""
    inputs = origin.get("inputs", {})
    # older manifests do not tell sources from tokenizers
    sources = origin.get("roles", {}).get("sources", list(inputs))
    hub = origin.get("roles", {}).get("hub", [])
    named = [(_code(one) if one in hub else _path(Path(one))) + _digest(inputs.get(one)) for one in sources]
    rows = {name: f"{number:,}" for name, number in origin.get("counts", {}).items()}
    rows |= {key: _value(key, value) for key, value in origin.get("settings", {}).items() if value not in _UNSET}
    made = f"Made by {_code('minordpo ' + origin['stage'])} from:\n\n{_list(named)}"
    return f"{made}\n\n{_table(('count or setting', 'value'), rows.items())}"


def _settings(training: Training | None, losses: Mapping[str, float]) -> str:
    if training is None:
        return f"{_NOT_KNOWN.capitalize()}."
    settings, step = training.manifest.settings, training.step
    if step is None and "train" in training.metrics:
        step = training.metrics["train"].step
    rows: dict[str, Any] = {"loss": loss_label(losses), "steps": _NOT_KNOWN if step is None else step}
    for key, label in _ALWAYS.items():
        if reads(losses, key):
            rows[label] = settings.get(key, _NOT_KNOWN)
    rows |= {key: value for key, value in settings.items() if _is_unusual(key, value, losses)}
    return _table(("setting", "value"), ((name, _value(name, value)) for name, value in rows.items()))


def _is_unusual(key: str, value: Any, losses: Mapping[str, float]) -> bool:
    """Whether a setting is worth a line: this run read it, and it is not what it would be by itself."""
    if key in (*_ALWAYS, LOSS_KEY) or key.startswith((f"{LOSS_KEY}.", _LORA, _DIGEST)):  # these have their own lines
        return False
    return reads(losses, key) and (key not in DECLARED or value != default_of(key))


def _metrics(training: Training | None) -> str:
    lines = {} if training is None else training.metrics
    splits = {name: lines[name] for name in ("train", "validation") if name in lines}
    if not splits:
        return f"{_NOT_KNOWN.capitalize()}."
    names = [name for name in PAIR_METRICS if any(name in line.values for line in splits.values())]
    if not all(line.has_reference for line in splits.values()):
        names = [name for name in names if not name.startswith(OF_LOG_RATIOS)]
    titles = {"train": "last training step", "validation": "last validation"}
    heads = [f"{titles[name]}, after step {line.step}" for name, line in splits.items()]
    rows = (
        (f"{_code(name)}, {PAIR_METRICS[name].unit}", *(_number(line.values.get(name)) for line in splits.values()))
        for name in names
    )
    means = "Means over the pairs of one step, and over the validation pairs." if len(splits) > 1 else (
        "Means over the pairs of one step; there was no validation."
    )  # fmt: skip
    chosen = "`rewards/*` are log(policy / reference) of a response, in nats, not multiplied by beta."
    return f"{means} {chosen}\n\n" + _table(("metric", *heads), rows)


def _versions(training: Training | None) -> str:
    exported = f"Exported by nemo-minordpo {__version__}."
    if training is None:
        return exported
    manifest = training.manifest
    versions = {"nemo-minordpo": manifest.version, "python": manifest.python, **manifest.packages}
    if manifest.commit is not None:
        versions["nemo-minordpo"] += f", commit {manifest.commit}"
    return "Trained with:\n\n" + _table(("package", "version"), versions.items()) + f"\n\n{exported}"


def _table(head: Iterable[str], rows: Iterable[Iterable[Any]]) -> str:
    cells = [list(head), *([str(cell).replace("|", "\\|") for cell in row] for row in rows)]
    cells.insert(1, ["---"] * len(cells[0]))
    return "\n".join(f"| {' | '.join(row)} |" for row in cells)


def _list(lines: Iterable[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _path(path: Path) -> str:
    """The last two parts: the rest says nothing to others, and may be private."""
    return _code("/".join(part for part in path.parts[-2:] if part != path.anchor) or str(path))


def _digest(sha256: str | None) -> str:
    return "" if sha256 is None else f" (sha256 {_code(sha256)})"


def _code(text: str) -> str:
    return f"`` {text} ``" if "`" in text else f"`{text}`"


def _value(key: str, value: Any) -> str:
    """The value of a setting, on one line."""
    if key.endswith(_NAMES_A_TOKENIZER) and isinstance(value, str):
        return _path(Path(value))
    is_line = isinstance(value, str) and len(value.splitlines()) == 1
    return _code(value if is_line else json.dumps(value, ensure_ascii=False))


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"
