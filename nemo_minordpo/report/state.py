"""Whether a run is complete, stopped, failed or running, from its `events.jsonl` and `failures/`."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nemo_minordpo.records import Failure, RunEvent

# What a rank says when another one is gone: the consequence, not the cause.
_CONSEQUENCES = (
    "Connection closed by peer", "Connection reset by peer", "Broken pipe", "Read error", "nothing moved for",
    "Timed out waiting", "Socket Timeout", "NCCL", "DistNetworkError", "DistStoreError", "Connection refused",
)  # fmt: skip
# What a run with the same settings meets again.
_LASTING = ("NotFiniteError: ",)
COMPLETE = "complete"


@dataclass(frozen=True, kw_only=True)
class State:
    """What happened to the run of a folder."""

    folder: Path
    events: Sequence[RunEvent]
    failures: Sequence[Failure]

    @property
    def is_complete(self) -> bool:
        """The model is put in place last but for the event, before which a rank may be killed."""
        return (self.folder / "model.nemo").exists() or (bool(self.events) and self.events[-1].event == COMPLETE)

    @property
    def starts(self) -> list[RunEvent]:
        return [event for event in self.events if event.event == "started"]

    @property
    def alarms(self) -> list[RunEvent]:
        """Of the degeneration watch, but for those of steps that were done again."""
        alarms: list[RunEvent] = []
        for event in self.events:
            if event.event == "started":
                alarms = [alarm for alarm in alarms if alarm.step <= event.step]
            elif event.event == "alarm":
                alarms.append(event)
        return alarms

    @property
    def max_steps(self) -> int | None:
        """Of the whole run; None before the first attempt."""
        return self.starts[-1].max_steps if self.starts else None

    def __str__(self) -> str:
        if self.is_complete:
            return COMPLETE
        last = next((event for event in reversed(self.events) if event.event in ("started", "stopped")), None)
        if last is not None and last.event == "stopped":
            return f"stopped ({last.detail}); the same command goes on"
        failed = [failure for failure in self.failures if last is None or failure.time > last.time]
        for failure in failed:
            if failure.error.startswith(_LASTING):
                reason = failure.error.partition(": ")[2]
                again = "the same command would end there again: change settings or inputs, in a new folder"
                return f"failed; {reason}; {again}"
        if failed:
            return "failed; the same command goes on"
        return "running, or killed without a word" if last is not None else "not started"


def read_state(folder: Path) -> State:
    """What the folder holds of events and failures; half-written ones, of a process that was killed, are left out."""
    return State(folder=folder, events=_events(folder), failures=_failures(folder))


def first_failure(failures: Sequence[Failure]) -> Failure | None:
    """The earliest that is no consequence of another one; or the earliest."""
    ordered = sorted(failures, key=lambda failure: failure.time)
    causes = [failure for failure in ordered if not is_consequence(failure)]
    return next(iter(causes or ordered), None)


def is_consequence(failure: Failure) -> bool:
    return any(text in failure.error for text in _CONSEQUENCES)


def _events(folder: Path) -> list[RunEvent]:
    path = folder / "events.jsonl"
    events = []
    for line in path.read_bytes().splitlines() if path.is_file() else []:
        try:
            events.append(RunEvent.from_json(line.decode()))
        except (TypeError, ValueError):
            continue
    return events


def _failures(folder: Path) -> list[Failure]:
    failures = []
    for path in (folder / "failures").glob("*.json"):
        try:
            failures.append(Failure.from_json(path.read_text(encoding="utf-8")))
        except (TypeError, ValueError):
            continue
    return failures
