"""Whether a run is complete, stopped, failed, waiting or running: from `events.jsonl`, `failures/`, `logs/waiting`."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import TypeVar

from nemo_minordpo import file_names
from nemo_minordpo.errors import UserError
from nemo_minordpo.records import Failure, RunEvent

# Errors of a rank that lost contact with another: the consequence, not the cause.
_CONSEQUENCES = (
    "Connection closed by peer", "Connection reset by peer", "Broken pipe", "Read error", "nothing moved for",
    "Timed out waiting", "Socket Timeout", "NCCL", "DistNetworkError", "DistStoreError", "Connection refused",
)  # fmt: skip
# Errors that recur until someone changes a setting or an input.
_LASTING = ("NotFiniteError: ", "UserError: ")
_Timed = TypeVar("_Timed", RunEvent, Failure)
COMPLETE, STARTED, BEGUN, STOPPED = "complete", "started", "begun", "stopped"


@dataclass(frozen=True, kw_only=True)
class State:
    """What happened to a folder's run.

    waiting: what the launcher is waiting for, and since when; empty: nothing.
    left_out: one sentence for each part of the files that could not be read.
    """

    folder: Path
    events: Sequence[RunEvent]
    failures: Sequence[Failure]
    waiting: str = ""
    left_out: Sequence[str] = ()

    @property
    def is_known(self) -> bool:
        """Whether anything was recorded; a copied run may lack its records."""
        return bool(self.events or self.failures)

    @property
    def is_complete(self) -> bool:
        """Either sign is enough: the event follows the model, and the rank may be killed in between."""
        return (self.folder / file_names.NEMO).exists() or (bool(self.events) and self.events[-1].event == COMPLETE)

    @property
    def starts(self) -> list[RunEvent]:
        return [event for event in self.events if event.event == STARTED]

    @property
    def alarms(self) -> list[RunEvent]:
        """The degeneration watch's alarms, except those at steps that were repeated after a resume."""
        alarms: list[RunEvent] = []
        for event in self.events:
            if event.event == STARTED:
                alarms = [alarm for alarm in alarms if alarm.step <= event.step]
            elif event.event == "alarm":
                alarms.append(event)
        return alarms

    @property
    def max_steps(self) -> int | None:
        """Length of the whole run; None before the first attempt."""
        return self.starts[-1].max_steps if self.starts else None

    @property
    def word(self) -> str:
        """The outcome of the last attempt, in a word or two."""
        return self._now[0]

    def __str__(self) -> str:
        return "; ".join(part for part in self._now if part)

    @property
    def _now(self) -> tuple[str, str, str]:
        """(outcome of the last attempt, why, what comes next)."""
        if self.is_complete:
            return COMPLETE, "", ""
        last = next((event for event in reversed(self.events) if event.event in (BEGUN, STARTED, STOPPED)), None)
        if last is not None and last.event == STOPPED:
            return f"stopped ({last.detail})", "", self.waiting or self._resumed()
        failed = [failure for failure in self.failures if last is None or failure.time > last.time]
        lasting = next((failure for failure in failed if failure.error.startswith(_LASTING)), None)
        if lasting is not None:
            again = "the same command would fail again: change settings or inputs"
            if lasting.error.startswith("NotFiniteError"):
                again += ", in a new folder"  # a run folder is bound to its settings
            return "failed", lasting.error.partition(": ")[2], again
        if failed:
            return "failed", "", self.waiting or self._resumed()
        if last is None:
            return "not started", "", self.waiting
        if self.waiting:
            return "ended without a message", "", self.waiting
        return f"{'setting up' if last.event == BEGUN else 'running'}, or killed", "", ""

    def _resumed(self) -> str:
        saved = [event.step for event in self.events if event.event == "saved"]
        return f"the same command {f'resumes it after step {saved[-1]}' if saved else 'starts it from the beginning'}"


def read_state(folder: Path) -> State:
    """Read a folder's events and failures; those half-written by a killed process are left out."""
    left_out: list[str] = []
    events, failures = _events(folder, left_out), _failures(folder, left_out)
    return State(folder=folder, events=events, failures=failures, waiting=_waiting(folder), left_out=left_out)


def first_failure(failures: Sequence[Failure]) -> Failure | None:
    """The earliest failure that is not a consequence of another; if all are, the earliest."""
    ordered = sorted(failures, key=lambda failure: failure.time)
    causes = [failure for failure in ordered if not is_consequence(failure)]
    return next(iter(causes or ordered), None)


def is_consequence(failure: Failure) -> bool:
    return any(text in failure.error for text in _CONSEQUENCES)


def _events(folder: Path, left_out: list[str]) -> list[RunEvent]:
    path = folder / file_names.EVENTS
    events = []
    for number, line in enumerate(path.read_bytes().split(b"\n") if path.is_file() else [], start=1):
        try:
            if line.strip():
                events.append(_timed(RunEvent.from_json(line.decode())))
        except (TypeError, ValueError):
            left_out.append(f"{path}:{number}: not an event, left out")
    return events


def _failures(folder: Path, left_out: list[str]) -> list[Failure]:
    failures = []
    for path in sorted((folder / file_names.FAILURES).glob("*.json")):
        try:
            failures.append(_timed(Failure.from_json(path.read_text(encoding="utf-8"))))
        except (OSError, TypeError, ValueError):
            left_out.append(f"{path}: not a failure, left out")
    return failures


def _timed(record: _Timed) -> _Timed:
    """Raises UserError unless the record's time is valid and has a time zone."""
    try:
        is_known = datetime.fromisoformat(record.time).tzinfo is not None
    except ValueError:
        is_known = False
    if not is_known:
        raise UserError(f"time {record.time!r}")
    return record


def _waiting(folder: Path) -> str:
    """The launcher's last message; it removes the file when it starts the ranks."""
    path = folder / file_names.LOGS / file_names.WAITING
    try:
        text, written = path.read_text(encoding="utf-8").strip(), path.stat().st_mtime
    except (OSError, UnicodeDecodeError):
        return ""
    moment = datetime.fromtimestamp(written, timezone.utc)
    return f"its job at {moment:%Y-%m-%d %H:%M:%S} UTC: {text}" if text else ""
