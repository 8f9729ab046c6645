"""Attempts at a run: a job that is started again resumes in the same folder, and the one before it may still be alive.

attempt.json    which attempt writes this run; the next one takes it over
events.jsonl    what happened to the run, a line each (records.RunEvent)
failures/       what broke, a file a rank (records.Failure)

An attempt that was replaced can still compute: on a node that Slurm has lost, its processes run on until their peers
are gone. It must not write any more. So the first rank reads attempt.json before it puts anything in place, and
files that are not yet in place have names of each attempt's own.
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
    """The right to write a run folder; of the first rank, which alone puts files in place.

    Attributes:
        folder: the run's.
        number: from 1.
        token: who this is, for people and for comparison: job, node, process.
    """

    folder: Path
    number: int
    token: str

    @classmethod
    def claim(cls, folder: Path) -> "Attempt":
        """Take the run over; attempts before this one can write no more."""
        before = _read(folder)
        attempt = cls(folder, before[0] + 1 if before else 1, f"{job_name()} on {socket.gethostname()}, {os.getpid()}")
        write_json(_file(folder), {"number": attempt.number, "token": attempt.token, "time": utc_now()})
        return attempt

    def check(self) -> None:
        """Called before anything is put in place.

        Raises:
            ReplacedError: a newer attempt has the run.
        """
        now = _read(self.folder)
        if now != (self.number, self.token):
            raise ReplacedError(
                f"{self.folder}: attempt {self.number} ({self.token}) was replaced by attempt {now[0]} ({now[1]})"
                if now
                else f"{_file(self.folder)} is gone: another process took the run folder away"
            )

    def note(self, event: str, *, step: int, detail: str = "", max_steps: int = 0) -> None:
        """Add a line to events.jsonl; arguments as records.RunEvent names them."""
        line = RunEvent(
            time=utc_now(), attempt=self.number, job=job_name(), event=event, step=step, detail=detail,
            max_steps=max_steps,
        )  # fmt: skip
        with (self.folder / file_names.EVENTS).open("a", encoding="utf-8") as out:
            out.write(to_json_line(line))


def record_failure(folder: Path, error: BaseException | str, *, rank: int, node: str | None = None) -> None:
    """Write down what broke on a rank, for `minordpo status`, which names the first. `node`: None = this one."""
    text = error if isinstance(error, str) else f"{type(error).__name__}: {error}"
    where = "" if isinstance(error, str) else "".join(traceback.format_exception(error))
    failure = Failure(
        time=utc_now(), job=job_name(), rank=rank, node=node or socket.gethostname(),
        error=text.strip().splitlines()[0] if text.strip() else "no message", traceback=where,
    )  # fmt: skip
    name = f"{failure.time.replace(':', '')}-{job_name()}-rank_{rank}.json"
    try:
        write_json(folder / file_names.FAILURES / name, vars(failure))
    except OSError as also:  # a full disk is one of the things that break
        sys.stderr.write(f"rank {rank} on {failure.node}: {failure.error} (not written down: {also})\n")


def job_name() -> str:
    """`job_<id>.<restarts>` under Slurm, `local` elsewhere; a launcher may say which of its steps it is."""
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
        raise UserError(f"{path}: damaged: remove it, once nothing trains in that folder any more")
    return number, token


if __name__ == "__main__":  # launchers/common.sh: of a rank that was killed and could not do it itself
    run_folder, node_of_rank, number_of_rank, what = sys.argv[1:]
    record_failure(Path(run_folder), what, rank=int(number_of_rank), node=node_of_rank)
