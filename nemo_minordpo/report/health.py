"""Whether a run can be trusted: non-finite values, clamped pairs, gradient norms, speed."""

import math
import statistics
from dataclasses import dataclass

from nemo_minordpo.report.runs import REWARDS, Run

_WATCHED = ("loss", *REWARDS, "grad_norm")


@dataclass(frozen=True, kw_only=True)
class Health:
    """None = the run did not log it, or its loss has no reference.

    rejected_below: fraction of pairs, at the end of training, whose rejected answer is no likelier than under the
    reference: there MinorDPO's penalty is off.
    chosen_below: fraction whose chosen answer is less likely than under the reference: there DPOP's penalty is on.
    """

    state: str
    steps: int
    max_steps: int | None
    not_finite: int  # steps at which the loss, a reward or the gradient norm is not finite
    first_not_finite: int | None
    first_alarm: int | None  # step after which the degeneration watch first raised an alarm
    rejected_below: float | None
    chosen_below: float | None
    grad_norm_median: float | None
    grad_norm_largest: float | None
    pairs_per_s: float | None  # median
    peak_memory_gib: float | None
    seconds: float | None  # of all steps, including repeated ones


def health_of(run: Run) -> Health:
    broken = [
        step.step for step in run.steps if any(not math.isfinite(step.values.get(name, 0.0)) for name in _WATCHED)
    ]
    norms, rates, memory = (_finite(run, name) for name in ("grad_norm", "pairs_per_s", "peak_memory_gib"))
    return Health(
        state=_state(run),
        steps=run.steps[-1].step if run.steps else 0,
        max_steps=run.state.max_steps,
        not_finite=len(broken),
        first_not_finite=broken[0] if broken else None,
        first_alarm=min((event.step for event in run.state.alarms), default=None),
        rejected_below=_end(run, "minordpo/rejected_below_reference"),
        chosen_below=_end(run, "dpop/chosen_below_reference"),
        grad_norm_median=statistics.median(norms) if norms else None,
        grad_norm_largest=max(norms, default=None),
        pairs_per_s=statistics.median(rates) if rates else None,
        peak_memory_gib=max(memory, default=None),
        seconds=None if math.isnan(run.seconds) else run.seconds,
    )


def _state(run: Run) -> str:
    # for a run copied without its events, only the model shows that it is complete
    return run.state.word if run.state.is_known or run.state.is_complete else "unknown"


def _finite(run: Run, name: str) -> list[float]:
    return [value for value in run.values(name) if math.isfinite(value)]


def _end(run: Run, name: str) -> float | None:
    value = run.final(name)
    return None if math.isnan(value) else value
