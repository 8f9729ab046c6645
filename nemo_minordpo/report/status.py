"""A run's progress: its last step, throughput, time left, last checkpoint, attempts and what ended them."""

import math
import statistics
from datetime import datetime, timedelta, timezone
from itertools import groupby
from pathlib import Path

from rich.console import Console

from nemo_minordpo.records import Failure, RunEvent
from nemo_minordpo.report.run_state import BEGUN, COMPLETE, STARTED, STOPPED, State, first_failure, is_consequence
from nemo_minordpo.report.runs import Run, read_run

# The remaining time is estimated from the median of this many steps.
_RECENT = 20
_RATES = ("pairs_per_s", "tokens_per_s")


def print_status(folder: Path) -> bool:
    """Print the progress of a folder's run. Returns whether it is complete.

    Raises:
        ValueError: `folder` is not a run folder.
    """
    run = read_run(folder)
    console = Console(soft_wrap=True, highlight=False, markup=False)
    for line in _lines(run, run.state, now=datetime.now(timezone.utc)):
        console.print(line)
    return run.state.is_complete


def _named(failure: Failure) -> str:
    first = "a rank or node was lost; first noticed by " if is_consequence(failure) else ""
    return f"{first}rank {failure.rank} on {failure.node}: {failure.error}"


def _lines(run: Run, state: State, *, now: datetime) -> list[str]:
    events, starts = state.events, state.starts
    lines = [f"{run.folder}: {run.loss}, beta {run.beta}, learning rate {run.learning_rate}"]
    if not starts:
        lines.append("no step yet")
    else:
        lines += _progress(run, starts[-1].max_steps)
    saved = [event for event in events if event.event == "saved"]
    if saved:
        lines.append(f"last checkpoint: step {saved[-1].step}, {_ago(saved[-1].time, now)}")
    lines += [f"set aside: {event.detail}" for event in events if event.event == "damaged"]
    lines += [f"alarm after step {event.step}: {event.detail}" for event in state.alarms]
    attempts = _attempts(state)
    for number, attempt in enumerate(attempts):
        until = attempts[number + 1][0].time if number + 1 < len(attempts) else now.isoformat()
        lines.append(_in_words(attempt, until, state))
    early = [failure for failure in state.failures if not attempts or failure.time < attempts[0][0].time]
    if (first_of_early := first_failure(early)) is not None:
        lines.append(f"before the first step: {_named(first_of_early)}")
    lines += run.left_out
    lines.append(str(state))
    return lines


def _attempts(state: State) -> list[list[RunEvent]]:
    """The start events of each attempt: set-up begun, then steps started; older runs recorded only the latter."""
    events = (event for event in state.events if event.event in (BEGUN, STARTED))
    return [list(own) for _, own in groupby(events, key=lambda event: event.attempt)]


def _in_words(attempt: list[RunEvent], until: str, state: State) -> str:
    first, last = attempt[0], attempt[-1]
    end = _end(first, until, state)
    if last.event == BEGUN:
        return f"attempt {first.attempt} ({first.job}): during set-up{end}"
    return f"attempt {first.attempt} ({first.job}, {last.detail}): from step {last.step}{end}"


def _progress(run: Run, max_steps: int) -> list[str]:
    if not run.steps:
        return [f"step 0 of {max_steps}"]
    last = run.steps[-1]
    values = last.values
    names = ("loss", "rewards/chosen", "rewards/rejected", "rewards/margin", "rewards/accuracy")
    lines = [f"step {last.step} of {max_steps}: {', '.join(f'{n} {values[n]:.4g}' for n in names if n in values)}"]
    seconds = [step.values.get("step_s", math.nan) for step in run.steps[-_RECENT:]]
    seconds = [value for value in seconds if math.isfinite(value)]
    if seconds:
        typical = statistics.median(seconds)
        left = _duration(typical * (max_steps - last.step))
        rates = ", ".join(f"{values[n]:.3g} {n.replace('_per_s', '')}/s" for n in _RATES if n in values)
        lines.append(f"{typical:.3g} s per step, {rates}; left: {left}")
    return lines


def _end(start: RunEvent, until: str, state: State) -> str:
    own = [event for event in state.events if event.attempt == start.attempt and event.event in (STOPPED, COMPLETE)]
    if own:
        return f", {own[-1].event} at step {own[-1].step}{': ' if own[-1].detail else ''}{own[-1].detail}"
    cause = first_failure([failure for failure in state.failures if start.time <= failure.time < until])
    if cause is not None:
        return f", failed: {_named(cause)}"
    followed = any(event.attempt > start.attempt for event in state.events)
    return ", ended without a message (killed, or its node was lost)" if followed else ""


def _duration(seconds: float) -> str:
    try:
        return str(timedelta(seconds=round(seconds)))
    except OverflowError:  # damaged numbers
        return "unknown"


def _ago(time: str, now: datetime) -> str:
    return f"{timedelta(seconds=round((now - datetime.fromisoformat(time)).total_seconds()))} ago"
