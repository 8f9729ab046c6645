"""Where a run is: its last step, throughput, time left, last checkpoint, attempts and what ended them."""

import statistics
from collections.abc import Sequence
from datetime import datetime, timedelta, timezone
from pathlib import Path

from rich.console import Console

from nemo_minordpo.records import Failure, RunEvent, read_lines
from nemo_minordpo.report.runs import Run, read_run

# What a rank says when another one is gone: the consequence, not the cause.
_CONSEQUENCES = (
    "Connection closed by peer", "Connection reset by peer", "Broken pipe", "Read error", "nothing moved for",
    "Timed out waiting", "Socket Timeout", "NCCL", "DistNetworkError", "DistStoreError", "Connection refused",
)  # fmt: skip
# Steps whose median says how long the others will take.
_RECENT = 20
_RATES = ("pairs_per_s", "tokens_per_s")


def print_status(folder: Path) -> bool:
    """Say where the run of a folder is. Returns whether it is complete.

    Raises:
        ValueError: `folder` is no run folder.
    """
    run = read_run(folder)
    events = _events(folder)
    console = Console(soft_wrap=True, highlight=False, markup=False)
    for line in _lines(run, events, _failures(folder), now=datetime.now(timezone.utc)):
        console.print(line)
    return _is_complete(run, events)


def _is_complete(run: Run, events: Sequence[RunEvent]) -> bool:
    """The model is put in place last but for the event, before which a rank may be killed."""
    return (run.folder / "model.nemo").exists() or (bool(events) and events[-1].event == "complete")


def first_failure(failures: Sequence[Failure]) -> Failure | None:
    """The earliest that is no consequence of another one; or the earliest."""
    ordered = sorted(failures, key=lambda failure: failure.time)
    causes = [failure for failure in ordered if not _is_consequence(failure)]
    return next(iter(causes or ordered), None)


def _is_consequence(failure: Failure) -> bool:
    return any(text in failure.error for text in _CONSEQUENCES)


def _named(failure: Failure) -> str:
    first = "a rank or node was lost, first noticed by " if _is_consequence(failure) else ""
    return f"{first}rank {failure.rank} on {failure.node}: {failure.error}"


def _lines(run: Run, events: list[RunEvent], failures: list[Failure], *, now: datetime) -> list[str]:
    starts = [event for event in events if event.event == "started"]
    lines = [f"{run.folder}: {run.loss}, beta {run.beta}, learning rate {run.learning_rate}"]
    if not starts:
        lines.append("no step yet")
    else:
        lines += _progress(run, starts[-1].max_steps)
    saved = [event for event in events if event.event == "saved"]
    if saved:
        lines.append(f"last checkpoint: step {saved[-1].step}, {_ago(saved[-1].time, now)}")
    lines += [f"set aside: {event.detail}" for event in events if event.event == "damaged"]
    for number, start in enumerate(starts):
        until = starts[number + 1].time if number + 1 < len(starts) else now.isoformat()
        end = _end(start, until, events, failures)
        lines.append(f"attempt {start.attempt} ({start.job}, {start.detail}): from step {start.step}{end}")
    early = [failure for failure in failures if not starts or failure.time < starts[0].time]
    if (first := first_failure(early)) is not None:
        lines.append(f"before the first step: {_named(first)}")
    lines.append(_state(run, events, failures))
    return lines


def _progress(run: Run, max_steps: int) -> list[str]:
    if not run.steps:
        return [f"step 0 of {max_steps}"]
    last = run.steps[-1]
    values = last.values
    names = ("loss", "rewards/chosen", "rewards/rejected", "rewards/margin", "rewards/accuracy")
    lines = [f"step {last.step} of {max_steps}: {', '.join(f'{n} {values[n]:.4g}' for n in names if n in values)}"]
    seconds = [step.values["step_s"] for step in run.steps[-_RECENT:] if "step_s" in step.values]
    if seconds:
        typical = statistics.median(seconds)
        left = timedelta(seconds=round(typical * (max_steps - last.step)))
        rates = ", ".join(f"{values[n]:.3g} {n.replace('_per_s', '')}/s" for n in _RATES if n in values)
        lines.append(f"{typical:.3g} s a step, {rates}; left: {left}")
    return lines


def _end(start: RunEvent, until: str, events: list[RunEvent], failures: list[Failure]) -> str:
    own = [event for event in events if event.attempt == start.attempt and event.event in ("stopped", "complete")]
    if own:
        return f", {own[-1].event} at step {own[-1].step}{': ' if own[-1].detail else ''}{own[-1].detail}"
    cause = first_failure([failure for failure in failures if start.time <= failure.time < until])
    if cause is not None:
        return f", failed: {_named(cause)}"
    went_on = any(event.event == "started" and event.attempt > start.attempt for event in events)
    return ", ended without a word (killed, or its node was lost)" if went_on else ""


def _state(run: Run, events: list[RunEvent], failures: list[Failure]) -> str:
    if _is_complete(run, events):
        return "complete"
    last = next((event for event in reversed(events) if event.event in ("started", "stopped")), None)
    if last is not None and last.event == "stopped":
        return f"stopped ({last.detail}); the same command goes on"
    failed = [failure for failure in failures if last is None or failure.time > last.time]
    if failed:
        return "failed; the same command goes on"
    return "running, or killed without a word" if last is not None else "not started"


def _events(folder: Path) -> list[RunEvent]:
    path = folder / "events.jsonl"
    lines = [text for _, text in read_lines(path)] if path.is_file() else []
    events = []
    for text in lines:
        try:
            events.append(RunEvent.from_json(text))
        except (TypeError, ValueError):
            continue  # half a line, of a process that was killed while it wrote
    return events


def _failures(folder: Path) -> list[Failure]:
    return [Failure.from_json(path.read_text(encoding="utf-8")) for path in (folder / "failures").glob("*.json")]


def _ago(time: str, now: datetime) -> str:
    return f"{timedelta(seconds=round((now - datetime.fromisoformat(time)).total_seconds()))} ago"
