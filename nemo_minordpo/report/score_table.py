"""All rates of a setting with their intervals, over its seeds, and its preferences among the held-out pairs."""

import math
from collections.abc import Callable, Sequence
from typing import Any

from nemo_minordpo.core.intervals import interval_over_seeds
from nemo_minordpo.records import Score
from nemo_minordpo.report.axes import Grid, Setting
from nemo_minordpo.report.scores import Rate, degenerate, flexible, over_seeds, strict
from nemo_minordpo.report.table import BASE, Table, csv_text

RATES: dict[str, Callable[[Score], Rate]] = {"strict": strict, "flexible": flexible, "degenerate": degenerate}
# heading -> metric of the pairs that were not trained on
HELD_OUT = {
    "held-out pairs, chosen likelier, %": "validation/logps/accuracy",
    "held-out pairs, chosen has the higher reward, %": "validation/rewards/accuracy",
}


def score_table(grid: Grid) -> Table:
    """One line per setting that has a score or held-out pairs; columns that would be empty are left out."""
    lines = [(BASE, [grid.base], None)] if grid.base else []
    lines += [(one.name, one.scores, one) for one in grid.settings]
    columns: dict[str, list[str]] = {"model": [name for name, *_ in lines]}
    columns["seeds"] = [str(len(one.runs)) if one else "-" for *_, one in lines]
    for name, of in RATES.items():
        columns[f"{name}, % (95 % interval)"] = [_rate(over_seeds(of, scores)) for _, scores, _ in lines]
    columns["strict over seeds and problems, % (95 % interval)"] = [
        _rate(_over_seeds(scores)) for _, scores, _ in lines
    ]
    for heading, metric in HELD_OUT.items():
        columns[heading] = ["-" if one is None else _percent(one.final(metric)) for *_, one in lines]
    filled = {heading: cells for heading, cells in columns.items() if any(cell != "-" for cell in cells)}
    rows = [row for row in map(list, zip(*filled.values(), strict=True)) if any(cell != "-" for cell in row[2:])]
    return Table(list(filled), rows)


def score_csv(grid: Grid) -> str:
    """The same, unrounded, for each setting."""
    header = ["name", "seeds"]
    header += [f"{name}{end}" for name in RATES for end in ("", "_low", "_high")]
    header += ["strict_over_seeds_low", "strict_over_seeds_high", *HELD_OUT.values()]
    return csv_text(header, [_cells(one) for one in grid.settings])


def _cells(setting: Setting) -> list[Any]:
    cells: list[Any] = [setting.name, len(setting.runs)]
    for of in RATES.values():
        rate = over_seeds(of, setting.scores)
        cells += (rate.value, rate.low, rate.high) if rate else (None, None, None)
    rate = _over_seeds(setting.scores)
    cells += (rate.low, rate.high) if rate else (None, None)
    ends = [setting.final(metric) for metric in HELD_OUT.values()]
    return cells + [end if math.isfinite(end) else None for end in ends]


def _over_seeds(scores: Sequence[Score]) -> Rate | None:
    questions = min((score.num_questions for score in scores), default=0)
    if len(scores) < 2 or questions < 2:
        return None
    values = [score.strict_accuracy for score in scores]
    low, high = interval_over_seeds(values, questions)
    return Rate(value=sum(values) / len(values), low=low, high=high)


def _rate(rate: Rate | None) -> str:
    return "-" if rate is None else f"{100 * rate.value:.1f} ({100 * rate.low:.1f}-{100 * rate.high:.1f})"


def _percent(value: float) -> str:
    return f"{100 * value:.1f}" if math.isfinite(value) else "-"
