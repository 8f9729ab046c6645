"""Run each check in its own process, so that one that crashes, hangs or loses its GPU does not affect the others."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from threading import Event, Lock

from tests.gpu.schedule import Check, Phase, end_of, lanes_at_a_time, threads_of_check

ROOT = Path(__file__).parent.parent.parent
_POLL_S = 0.5
# Ranks on one machine only need the loopback interface. A few compile threads suffice, since lanes share the cores.
_ENVIRONMENT = {"NCCL_SOCKET_IFNAME": "lo", "GLOO_SOCKET_IFNAME": "lo", "TORCHINDUCTOR_COMPILE_THREADS": "4"}


@dataclass(frozen=True)
class Row:
    """The outcome of a check: `passed`, `FAILED` or `not run`; the last two with a reason.

    started_s, ended_s: seconds since the start of the session.
    """

    name: str
    result: str
    reason: str
    figure: str
    started_s: float
    ended_s: float

    @property
    def seconds(self) -> float:
        return self.ended_s - self.started_s


@dataclass(frozen=True)
class Session:
    """A run of checks.

    folder: an existing folder for shared files and the logs.
    limit_s: time limit for all checks together, in seconds.
    stop: when set, running checks are ended and no others start.
    on_row: called with each finished row, one at a time.
    """

    folder: Path
    limit_s: float
    stop: Event = field(default_factory=Event)
    on_row: Callable[[Row], None] = lambda row: None
    start: float = field(default_factory=time.monotonic)
    _lock: Lock = field(default_factory=Lock)

    @property
    def elapsed_s(self) -> float:
        return time.monotonic() - self.start

    def run(self, phases: Sequence[Phase]) -> list[Row]:
        """Run all checks, except those for which no time is left. Returns rows in the order of the phases."""
        rows: list[Row] = []
        for phase in phases:
            end_s = end_of(phase, phases, limit_s=self.limit_s)
            run_lane = partial(self._run_lane, end_s=end_s, threads=threads_of_check(phase))
            with ThreadPoolExecutor(lanes_at_a_time(phase)) as lanes:
                rows += [row for of_lane in lanes.map(run_lane, phase.lanes) for row in of_lane]
        return rows

    def _run_lane(self, lane: Sequence[Check], *, end_s: float, threads: int) -> list[Row]:
        rows = []
        for check in lane:
            rows.append(self.run_check(check, end_s=end_s, threads=threads))
            with self._lock:
                self.on_row(rows[-1])
        return rows

    def run_check(self, check: Check, *, end_s: float, threads: int) -> Row:
        """Run one check, with its output in its own log in the folder.

        Args:
            check: the check.
            end_s: latest time at which it is stopped, in seconds since the start of the session.
            threads: number of torch's CPU threads.
        """
        started_s = self.elapsed_s
        if self.stop.is_set() or started_s >= end_s:
            reason = "interrupted" if self.stop.is_set() else "no time left"
            return Row(check.name, "not run", reason, "", started_s, started_s)
        answer = self.folder / f"{_file_name(check)}.answer"  # no check writes a file of this name
        answer.unlink(missing_ok=True)
        with log_of(check, self.folder).open("w") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "tests.gpu.one", check.target, str(self.folder), str(answer), *check.arguments],
                cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
                env={**_ENVIRONMENT, "OMP_NUM_THREADS": str(threads), **os.environ},
            )  # fmt: skip
            try:
                code = self._wait(process, until_s=min(started_s + check.limit_s, end_s))
            finally:
                # also end everything that it started
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        result, reason, figure = self._outcome(code, answer, check, out_of_time=end_s < started_s + check.limit_s)
        return Row(check.name, result, reason, figure, started_s, self.elapsed_s)

    def _wait(self, process: subprocess.Popen, *, until_s: float) -> int | None:
        """The exit code; None = still running, and must be ended."""
        while (left_s := until_s - self.elapsed_s) > 0 and not self.stop.is_set():
            with contextlib.suppress(subprocess.TimeoutExpired):
                return process.wait(timeout=min(left_s, _POLL_S))
        return None

    def _outcome(self, code: int | None, answer: Path, check: Check, *, out_of_time: bool) -> tuple[str, str, str]:
        """Result, reason and figure."""
        if code == 0 and answer.exists():
            said: dict[str, str] = json.loads(answer.read_text())
            return said["result"], said.get("reason", ""), said.get("figure", "")
        if code is None and self.stop.is_set():
            return "not run", "interrupted", ""
        if code is None and out_of_time:
            return "not run", "no time left to finish", ""
        if code is None:
            reason = f"not finished after {check.limit_s:g} s"
        elif code < 0:
            reason = f"killed by {signal.Signals(-code).name}"
        else:
            reason = f"ended with exit code {code}"
        return "FAILED", reason, ""


def log_of(check: Check, folder: Path) -> Path:
    return folder / f"{_file_name(check)}.log"


def _file_name(check: Check) -> str:
    return re.sub(r"\W+", "_", check.name)
