"""Judge scores: a rate with its interval, whether two rates differ, and whether a run broke."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from nemo_minordpo.core.intervals import wilson_interval
from nemo_minordpo.records import Score
from nemo_minordpo.report.runs import REWARDS, Run

# A run has degenerated if its rate of repetitive answers exceeds the base model's by this much.
DEGENERATE_ABOVE_BASE = 0.05
DEGENERATE, NO_NUMBERS, BELOW_BASE = (
    "answers degenerate",
    "training values not finite",
    "accuracy clearly below the base model's",
)


@dataclass(frozen=True, kw_only=True)
class Rate:
    """A fraction of the questions, with its 95 % interval."""

    value: float
    low: float
    high: float

    def against(self, other: "Rate") -> str:
        """Returns "higher" or "lower" if the intervals are disjoint, else "overlap"."""
        return "higher" if self.low > other.high else "lower" if self.high < other.low else "overlap"

    def __str__(self) -> str:
        return f"{100 * self.value:.1f} % ({100 * self.low:.1f}-{100 * self.high:.1f})"


def strict(score: Score) -> Rate:
    low, high = score.strict_interval_95
    return Rate(value=score.strict_accuracy, low=low, high=high)


def flexible(score: Score) -> Rate:
    low, high = score.flexible_interval_95
    return Rate(value=score.flexible_accuracy, low=low, high=high)


def degenerate(score: Score) -> Rate:
    low, high = wilson_interval(score.degenerate_rate * score.num_questions, score.num_questions)
    return Rate(value=score.degenerate_rate, low=low, high=high)


def over_seeds(of: Callable[[Score], Rate], scores: Sequence[Score]) -> Rate | None:
    """A setting's mean rate; None without scores.

    Seeds answer the same questions, so more seeds are not more questions: the interval of the mean is that of a
    single run's questions, widened to include every seed.
    """
    if len(scores) < 2:
        return of(scores[0]) if scores else None
    values = [of(score).value for score in scores]
    questions = min(score.num_questions for score in scores)
    mean = sum(values) / len(values)
    low, high = wilson_interval(mean * questions, questions)
    return Rate(value=mean, low=min(low, *values), high=max(high, *values))


def is_degenerate(score: Score, base: Score | None) -> bool:
    """Whether clearly more answers repeat themselves than the base model's: by five points, with disjoint intervals."""
    usual = 0.0 if base is None else base.degenerate_rate
    if score.degenerate_rate - usual < DEGENERATE_ABOVE_BASE:
        return False
    if base is None:
        return True
    return degenerate(score).against(degenerate(base)) == "higher"


def broke(run: Run, base: Score | None) -> list[str]:
    """How a run broke; empty = it did not. Its accuracy is judged elsewhere, over all seeds."""
    reasons = []
    watched = REWARDS if run.has_reference else ("loss",)
    if run.steps and not all(math.isfinite(run.final(name)) for name in watched):
        reasons.append(NO_NUMBERS)
    if run.score is not None and is_degenerate(run.score, base):
        reasons.append(DEGENERATE)
    return reasons
