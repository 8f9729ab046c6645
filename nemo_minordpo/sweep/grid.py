"""The runs of an experiment: every combination of the settings that it sweeps over."""

import itertools
import re
from dataclasses import dataclass
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from nemo_minordpo.errors import UserError

# What a setting is called in the name of a run; a loss goes by its own name.
_SHORT = {"model.dpo.preference_loss": "", "model.dpo.ref_policy_kl_penalty": "beta"}


@dataclass(frozen=True)
class PlannedRun:
    """One run: its name, unique in the experiment, and the overrides of `train` that are its own."""

    name: str
    overrides: tuple[str, ...]


def runs_of(sweep: dict[str, Any]) -> list[PlannedRun]:
    """Every combination of the values, the last setting changing fastest.

    Args:
        sweep: {setting: values in the syntax of Hydra's sweeps}, such as "dpo,minordpo" or "range(1,4)"; nested keys
            mean the same as dotted ones, and of two that do the later one counts; a list is the same as its elements.

    Raises:
        ValueError: a value that Hydra's grammar does not have, or one that occurs twice.
    """
    axes = [(key, _values(key, value)) for key, value in dict(_flat(sweep)).items()]
    runs = []
    for values in itertools.product(*(values for _, values in axes)):
        pairs = [(key, value) for (key, _), value in zip(axes, values, strict=True)]
        parts = [_SHORT.get(key, key.rpartition(".")[2]) + re.sub(r"[^\w.+-]+", "_", value) for key, value in pairs]
        runs.append(PlannedRun("-".join(parts) or "run", tuple(f"{key}={value}" for key, value in pairs)))
    return runs


def _flat(values: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    found = []
    for key, value in values.items():
        found += _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else [(prefix + key, value)]
    return found


def _values(key: str, value: Any) -> list[str]:
    text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
    try:
        override = OverridesParser.create().parse_override(f"{key}={text}")
        found = list(override.sweep_string_iterator()) if override.is_sweep_override() else [text]
    except HydraException as error:
        raise UserError(f"sweep: {key}={text}: {str(error).splitlines()[0]}") from error
    if len(set(found)) < len(found):
        raise UserError(f"sweep: {key}={text}: a value occurs twice")
    return found
