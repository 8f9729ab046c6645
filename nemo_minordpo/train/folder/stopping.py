"""What ends a run before its last step: a signal, the time limit, or ranks that wait for one another for ever."""

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

# In the order of their weight: of several ranks' reasons the last one here counts.
REASONS = ("", "time limit reached (exp_manager.max_time_per_run)", "SIGUSR1", "SIGTERM")
_SIGNALS = {signal.SIGUSR1: REASONS.index("SIGUSR1"), signal.SIGTERM: REASONS.index("SIGTERM")}


class StopRequest:
    """A wish to stop after the step that computes now; from the clock, or from Slurm.

    SIGUSR1 is what `sbatch --signal=B:USR1@SECONDS` sends before the time limit, SIGTERM what preemption, `scancel` and
    `scontrol requeue` send, `KillWait` seconds before they kill.
    """

    def __init__(self, *, max_seconds: int | None) -> None:
        """`max_seconds`: from now on; None = no limit."""
        self._deadline = math.inf if max_seconds is None else time.monotonic() + max_seconds
        self._reason = 0

    def listen(self) -> None:
        """Take signals as requests, however often they come: Slurm and the launcher may both send one."""
        for number in _SIGNALS:
            signal.signal(number, self._on_signal)

    def agreed(self) -> str:
        """Why to stop now, the same on every rank; empty: go on. Ranks that disagreed would wait for ever.

        Collective, one number a step.
        """
        own = self._reason or int(time.monotonic() > self._deadline)
        reason = torch.tensor([own], dtype=torch.int32, device=torch.cuda.current_device())
        torch.distributed.all_reduce(reason, op=torch.distributed.ReduceOp.MAX)
        return REASONS[int(reason.item())]

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._reason = max(self._reason, _SIGNALS[signal.Signals(number)])


@contextmanager
def signals_kept_from_children() -> Iterator[None]:
    """Processes that are started inside do not get the signals that Slurm sends to all processes of a job.

    Megatron's checkpoint writer starts helpers: the signal that asks for a checkpoint would end them.
    """
    resource_tracker.ensure_running()  # its start, which the first helper causes, would unblock SIGTERM
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class StallDetector:
    """Ends this process when nothing moves: a rank that is frozen or cut off never answers, and its peers would wait.

    Collectives have limits of their own, of half an hour and a group each; this one holds for whatever a rank waits
    for, a file system included.
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
            max_seconds: between two beats; longer than the longest step, validation batch, evaluation of answers or
                checkpoint takes. None: no limit.
            on_stall: writes the reason down; then the process ends.
            clock: seconds.
        """
        self._limit = math.inf if max_seconds is None else max_seconds
        self._on_stall, self._clock = on_stall, clock
        self._last = math.inf
        self._doing = ""
        self._thread = threading.Thread(target=self._wait_for_stall, name="stall detector", daemon=True)

    def beat(self, doing: str) -> None:
        """Something moved; `doing` is what begins now."""
        self._last, self._doing = self._clock(), doing
        if self._limit < math.inf and not self._thread.is_alive():
            self._thread.start()

    def rest(self) -> None:
        """Nothing has to move from now on."""
        self._last = math.inf

    def stalled(self) -> str:
        """Why this process has to end now; empty: it need not."""
        waited = self._clock() - self._last
        if waited <= self._limit:
            return ""
        return (
            f"nothing moved for {waited:.0f} s in {self._doing}: another rank is frozen, cut off or dead "
            "(exp_manager.max_time_without_progress)"
        )

    def _wait_for_stall(self) -> None:
        while not (reason := self.stalled()):
            time.sleep(min(self._limit / 10, 1.0))
        faulthandler.dump_traceback(file=sys.__stderr__ or 2)
        self._on_stall(reason)
        os._exit(1)
