"""Does a training metric predict the score? Rank correlations over runs; the paper leaves this question open."""

import math
from dataclasses import dataclass

import numpy as np

from nemo_minordpo.core.intervals import rank_correlation_interval
from nemo_minordpo.report.axes import Grid
from nemo_minordpo.report.runs import Run

# With fewer runs, the interval of a rank correlation of 0.7 includes 0.
FEWEST_RUNS = 10
# These describe the machine and the schedule, not the model.
_NOT_OF_THE_MODEL = frozenset(
    ("lr", "step_s", "pairs_per_s", "tokens_per_s", "tokens_per_s_equivalent", "row_fill", "model_tflops",
     "matmul_peak_fraction", "peak_memory_gib", "reference_noise")
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Relation:
    """Spearman's coefficient between a metric's final value and the strict accuracy, over runs.

    correlation is None with fewer than `FEWEST_RUNS` runs, or when the metric or the score is the same in all runs.
    """

    metric: str
    runs: str  # "all", or a loss
    count: int  # runs with both
    correlation: float | None
    low: float | None
    high: float | None


def candidate_metrics(grid: Grid) -> list[str]:
    """Every logged metric that describes the model."""
    names = dict.fromkeys(name for run in grid.runs for name in run.metrics)
    return [name for name in names if name.rpartition("/")[2] not in _NOT_OF_THE_MODEL]


def relations(grid: Grid) -> list[Relation]:
    """Each metric over all runs and within each loss, because the loss may explain both metric and score."""
    groups = {"all": grid.runs}
    if len(grid.losses) > 1:
        groups |= {loss: [run for setting in grid.of(loss) for run in setting.runs] for loss in grid.losses}
    return [_relation(metric, name, runs) for metric in candidate_metrics(grid) for name, runs in groups.items()]


def sentence(grid: Grid, found: list[Relation]) -> str:
    """Which metric correlates best with the score, or why this is unknown."""
    scored = sum(run.score is not None for run in grid.runs)
    unknown = "It is unknown whether a training metric predicts the score:"
    if scored < FEWEST_RUNS:
        return f"{unknown} too few runs have a score ({scored}; {FEWEST_RUNS} are needed)."
    over_all = [one for one in found if one.runs == "all" and one.correlation is not None]
    if not over_all:
        return f"{unknown} the score, or every metric, is the same in all runs."
    best = max(over_all, key=lambda one: abs(one.correlation or 0))
    assert best.correlation is not None
    within = [one for one in found if one.metric == best.metric and one.runs != "all" and one.correlation is not None]
    parts = "; ".join(f"{one.runs} {one.correlation:+.2f} (n = {one.count})" for one in within)
    return (
        f"Of {len(over_all)} training metrics, {best.metric} correlates best with the score: rank correlation "
        f"{best.correlation:+.2f} over {best.count} runs (95 % interval {best.low:+.2f} to {best.high:+.2f}, "
        f"not corrected for picking the best of {len(over_all)})" + (f"; within each loss: {parts}." if parts else ".")
    )


def spearman(left: list[float], right: list[float]) -> float | None:
    """Pearson's coefficient of the ranks, where ties share their mean rank; None if one side is constant."""
    first, second = _ranks(left), _ranks(right)
    if first.std() == 0 or second.std() == 0:
        return None
    return float(np.clip(np.corrcoef(first, second)[0, 1], -1, 1))


def _ranks(values: list[float]) -> np.ndarray:
    _, places, counts = np.unique(np.asarray(values), return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[places]


def _relation(metric: str, name: str, runs: list[Run]) -> Relation:
    pairs = [(run.final(metric), run.score.strict_accuracy) for run in runs if run.score is not None]
    pairs = [(end, score) for end, score in pairs if math.isfinite(end)]
    correlation = low = high = None
    if len(pairs) >= FEWEST_RUNS:
        correlation = spearman(*map(list, zip(*pairs, strict=True)))
    if correlation is not None:
        low, high = rank_correlation_interval(correlation, len(pairs))
    return Relation(metric=metric, runs=name, count=len(pairs), correlation=correlation, low=low, high=high)
