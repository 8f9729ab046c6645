"""Reasons to end a run early: a signal, the time limit, or ranks that hang waiting for each other."""

import faulthandler
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from types import FrameType

import torch

# In order of priority: if ranks have different reasons, the last one in this list counts.
REASONS = ("", "time limit reached (exp_manager.max_time_per_run)", "SIGUSR1", "SIGTERM")
_SIGNALS = {signal.SIGUSR1: REASONS.index("SIGUSR1"), signal.SIGTERM: REASONS.index("SIGTERM")}


class StopRequest:
    """A request, from the clock or from Slurm, to stop after the current step.

    `sbatch --signal=B:USR1@SECONDS` sends SIGUSR1 before the time limit; preemption, `scancel` and `scontrol requeue`
    send SIGTERM `KillWait` seconds before they kill.
    """

    def __init__(self, *, max_seconds: int | None) -> None:
        """`max_seconds`: time limit, from now; None = no limit."""
        self._deadline = math.inf if max_seconds is None else time.monotonic() + max_seconds
        self._reason = 0

    def listen(self) -> None:
        """Treat signals as requests, also repeated ones: Slurm and the launcher may both send one."""
        for number in _SIGNALS:
            signal.signal(number, self._on_signal)

    def agreed(self) -> str:
        """Why to stop now, identical on every rank; empty to continue. Ranks that disagreed would hang.

        Collective, one number per step.
        """
        own = self._reason or int(time.monotonic() > self._deadline)
        reason = torch.tensor([own], dtype=torch.int32, device=torch.cuda.current_device())
        torch.distributed.all_reduce(reason, op=torch.distributed.ReduceOp.MAX)
        return REASONS[int(reason.item())]

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._reason = max(self._reason, _SIGNALS[signal.Signals(number)])


@contextmanager
def signals_kept_from_children() -> Iterator[None]:
    """Processes started in this context ignore the signals that Slurm sends to all processes of a job.

    Megatron's checkpoint writer starts helper processes, which the signal that asks for a checkpoint would kill.
    """
    resource_tracker.ensure_running()  # the first helper would start it, and that would unblock SIGTERM
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class StallDetector:
    """Ends this process if there is no progress: a rank that is frozen or cut off would leave its peers waiting.

    Collectives have timeouts of their own, half an hour per process group; this limit covers everything a rank can wait
    for, including a file system.
    """

    def __init__(
        self,
        *,
        max_seconds: int | None,
        on_stall: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """
        Args:
            max_seconds: longest time between two beats; must exceed the longest step, validation batch, evaluation of
                answers and checkpoint. None = no limit.
            on_stall: records the reason; then the process exits.
            clock: current time in seconds.
        """
        self._limit = math.inf if max_seconds is None else max_seconds
        self._on_stall, self._clock = on_stall, clock
        self._last = math.inf
        self._doing = ""
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._wait_for_stall, name="stall detector", daemon=True)

    def beat(self, doing: str) -> None:
        """Report progress; `doing` describes what starts now."""
        self._last, self._doing = self._clock(), doing
        if self._limit < math.inf and not self._thread.is_alive():
            self._thread.start()

    def end(self) -> None:
        """Expect no more progress; nothing is watched from now on."""
        self._last = math.inf
        self._ended.set()

    def stalled(self) -> str:
        """Why this process must exit now; empty if it need not."""
        waited = self._clock() - self._last
        if waited <= self._limit:
            return ""
        return (
            f"nothing moved for {waited:.0f} s in {self._doing}: another rank is frozen, cut off or dead "
            "(exp_manager.max_time_without_progress)"
        )

    def _wait_for_stall(self) -> None:
        while not (reason := self.stalled()):
            if self._ended.wait(min(self._limit / 10, 1.0)):
                return
        faulthandler.dump_traceback(file=sys.__stderr__ or 2)
        self._on_stall(reason)
        os._exit(1)
