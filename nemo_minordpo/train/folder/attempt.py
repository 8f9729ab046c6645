"""Attempts at a run: a restarted job resumes in the same folder, while the previous attempt may still be alive.

attempt.json    the attempt that may write this run; the next attempt replaces it
events.jsonl    what happened to the run, one line per event (records.RunEvent)
failures/       what failed, one file per failed rank (records.Failure)

A replaced attempt can still be computing: on a node that Slurm has lost, processes run until their peers are gone. It
must not write any more. So the first rank reads attempt.json before it moves anything into place, and temporary files
have the attempt's number in their names.
"""

import os
import socket
import sys
import traceback
from dataclasses import dataclass
from pathlib import Path

from nemo_minordpo import file_names
from nemo_minordpo.checked_json import read_json_object
from nemo_minordpo.errors import UserError
from nemo_minordpo.files import to_json_line, write_json
from nemo_minordpo.records import Failure, RunEvent, utc_now


class ReplacedError(RuntimeError):
    """This attempt is over: another one has resumed the run."""


@dataclass(frozen=True)
class Attempt:
    """The right to write a run folder; only the first rank moves files into place.

    Attributes:
        folder: the run's.
        number: from 1.
        token: identifies the attempt, for people and for comparison: job, node, process.
    """

    folder: Path
    number: int
    token: str

    @classmethod
    def claim(cls, folder: Path) -> "Attempt":
        """Take over the run; earlier attempts can no longer write."""
        before = _read(folder)
        attempt = cls(folder, before[0] + 1 if before else 1, f"{job_name()} on {socket.gethostname()}, {os.getpid()}")
        write_json(_file(folder), {"number": attempt.number, "token": attempt.token, "time": utc_now()})
        return attempt

    def check(self) -> None:
        """Check that this attempt may still write; called before anything is moved into place.

        Raises:
            ReplacedError: a newer attempt has taken over the run.
        """
        now = _read(self.folder)
        if now != (self.number, self.token):
            raise ReplacedError(
                f"{self.folder}: attempt {self.number} ({self.token}) was replaced by attempt {now[0]} ({now[1]})"
                if now
                else f"{_file(self.folder)} is gone: another process removed the run folder"
            )

    def note(self, event: str, *, step: int, detail: str = "", max_steps: int = 0) -> None:
        """Append a line to events.jsonl; arguments as in records.RunEvent."""
        line = RunEvent(
            time=utc_now(), attempt=self.number, job=job_name(), event=event, step=step, detail=detail,
            max_steps=max_steps,
        )  # fmt: skip
        with (self.folder / file_names.EVENTS).open("a", encoding="utf-8") as out:
            out.write(to_json_line(line))


def record_failure(folder: Path, error: BaseException | str, *, rank: int, node: str | None = None) -> None:
    """Record a rank's failure for `minordpo status`, which shows the first one. `node`: None = this node."""
    text = error if isinstance(error, str) else f"{type(error).__name__}: {error}"
    where = "" if isinstance(error, str) else "".join(traceback.format_exception(error))
    failure = Failure(
        time=utc_now(), job=job_name(), rank=rank, node=node or socket.gethostname(),
        error=text.strip().splitlines()[0] if text.strip() else "no message", traceback=where,
    )  # fmt: skip
    name = f"{failure.time.replace(':', '')}-{job_name()}-rank_{rank}.json"
    try:
        write_json(folder / file_names.FAILURES / name, vars(failure))
    except OSError as write_error:  # e.g. when a full disk is what failed
        sys.stderr.write(f"rank {rank} on {failure.node}: {failure.error} (not recorded: {write_error})\n")


def job_name() -> str:
    """`job_<id>.<restarts>` under Slurm, else `local`."""
    job = os.environ.get("SLURM_JOB_ID")
    return f"job_{job}.{os.environ.get('SLURM_RESTART_COUNT', '0')}" if job else "local"


def _file(folder: Path) -> Path:
    return folder / file_names.ATTEMPT


def _read(folder: Path) -> tuple[int, str] | None:
    path = _file(folder)
    if not path.exists():
        return None
    values = read_json_object(path)
    number, token = values.get("number"), values.get("token")
    if not (isinstance(number, int) and isinstance(token, str)):
        raise UserError(f"{path}: damaged; remove it once nothing is training in that folder")
    return number, token


if __name__ == "__main__":  # called by launchers/common.sh for a rank that was killed
    run_folder, node_of_rank, number_of_rank, what = sys.argv[1:]
    record_failure(Path(run_folder), what, rank=int(number_of_rank), node=node_of_rank)
