"""Metrics against steps, thinned for drawing: per run, and per setting over its seeds."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from nemo_minordpo.report.axes import Grid, Setting
from nemo_minordpo.report.runs import FINAL_PART, Run

# More points than a panel has pixels would be invisible.
MOST_POINTS = 240
# Significant digits of a curve's numbers; the page, the CSV and the figures share them.
_DIGITS = 5


@dataclass(frozen=True, kw_only=True)
class Steps:
    """The positions of a curve's points: `width` training steps each, the same for every run of the report."""

    width: int
    count: int

    @property
    def centres(self) -> list[float]:
        """Half-way between the first and the last step of each point."""
        return [self.first(place) + (self.width - 1) / 2 for place in range(self.count)]

    def first(self, place: int) -> int:
        return place * self.width + 1

    def last(self, place: int) -> int:
        return (place + 1) * self.width

    def place(self, step: int) -> int:
        """The point that holds `step`; values recorded before the first step belong to the first point."""
        return max(step - 1, 0) // self.width


@dataclass(frozen=True, kw_only=True)
class Curve:
    """A metric at each position of `Steps`; NaN = nothing finite was recorded there.

    For a run, `low` and `high` equal `mean`; for a setting, they are its lowest and highest seed.
    """

    mean: list[float]
    low: list[float]
    high: list[float]


class Curves:
    """The curves of a report, each computed once."""

    def __init__(self, grid: Grid) -> None:
        last = max([1, *(line.step for run in grid.runs for lines in run.lines.values() for line in lines)])
        width = math.ceil(last / MOST_POINTS)
        self.steps = Steps(width=width, count=math.ceil(last / width))
        self._of_run: dict[tuple[int, str], Curve] = {}

    def run(self, run: Run, metric: str) -> Curve:
        """The mean of the values recorded in each position's steps."""
        key = id(run), metric
        if key not in self._of_run:
            recorded: list[list[float]] = [[] for _ in range(self.steps.count)]
            for step, value in run.recorded(metric):
                if math.isfinite(value):
                    recorded[self.steps.place(step)].append(value)
            mean = [_rounded(sum(values) / len(values)) if values else math.nan for values in recorded]
            self._of_run[key] = Curve(mean=mean, low=mean, high=mean)
        return self._of_run[key]

    def setting(self, setting: Setting, metric: str) -> Curve:
        """Mean, lowest and highest of the seeds that reached each position."""
        means = [self.run(run, metric).mean for run in setting.runs]
        columns = [[value for value in column if not math.isnan(value)] for column in zip(*means, strict=True)]
        return Curve(
            mean=[_rounded(sum(column) / len(column)) if column else math.nan for column in columns],
            low=[min(column, default=math.nan) for column in columns],
            high=[max(column, default=math.nan) for column in columns],
        )


def smoothed(values: Sequence[float]) -> list[float]:
    """Centred mean over a tenth of the values, fewer at the ends; NaN where no finite value is near."""
    reach = int(len(values) * FINAL_PART) // 2
    result = []
    for place in range(len(values)):
        near = [value for value in values[max(0, place - reach) : place + reach + 1] if math.isfinite(value)]
        result.append(sum(near) / len(near) if near else math.nan)
    return result


def _rounded(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}")
