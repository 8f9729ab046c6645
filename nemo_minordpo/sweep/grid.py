"""The runs of an experiment: every combination of the settings that it sweeps over."""

import itertools
import re
from dataclasses import dataclass
from typing import Any

from hydra.core.override_parser.types import QuotedString
from hydra.errors import HydraException

from nemo_minordpo.config import hydra_value, read_override, short_name
from nemo_minordpo.errors import UserError
from nemo_minordpo.flat import flatten


@dataclass(frozen=True)
class PlannedRun:
    """One run: its name, unique within the experiment, and its own overrides of `train`."""

    name: str
    overrides: tuple[str, ...]


def runs_of(sweep: dict[str, Any]) -> list[PlannedRun]:
    """Every combination of the values, the last setting changing fastest.

    Args:
        sweep: {setting: values in Hydra's sweep syntax}, for example "dpo,minordpo" or "range(1,4)", or a list of
            values; nested and dotted keys are equivalent, and the later of two equal keys wins.

    Raises:
        UserError: a value is invalid in Hydra's grammar or occurs twice, or two runs have the same name.
    """
    axes = [(key, _values(key, value)) for key, value in flatten(sweep).items()]
    runs = []
    for values in itertools.product(*(values for _, values in axes)):
        pairs = [(key, value) for (key, _), value in zip(axes, values, strict=True)]
        parts = [short_name(key) + re.sub(r"[^\w.+-]+", "_", value) for key, value in pairs]
        runs.append(PlannedRun("-".join(parts) or "run", tuple(f"{key}={value}" for key, value in pairs)))
    by_name = {run.name: run for run in reversed(runs)}
    for run in runs:
        if (first := by_name[run.name]) is not run:
            both = f"{' '.join(first.overrides)} and {' '.join(run.overrides)}"
            raise UserError(f"sweep: {both} would share the folder name {run.name}")
    return runs


def _values(key: str, value: Any) -> list[str]:
    """The values as Hydra expects them after KEY=."""
    if isinstance(value, str):
        try:
            override = read_override(f"{key}={value}")
            found = (
                [hydra_value(_plain(one)) for one in override.sweep_iterator()]
                if override.is_sweep_override()
                else [value]
            )
        except UserError as error:
            raise UserError(f"sweep: {error}") from error
        except HydraException as error:  # glob and interval, which list no values
            raise UserError(f"sweep: {key}={value}: {error}") from error
    else:
        found = [hydra_value(one) for one in (value if isinstance(value, list) else [value])]
    if not found or len(set(found)) < len(found):
        raise UserError(f"sweep: {key}={value}: {'a value occurs twice' if found else 'no value'}")
    return found


def _plain(value: Any) -> Any:
    """A sweep's value without Hydra's quotes."""
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return value.text if isinstance(value, QuotedString) else value
