"""The processes that make parts of rows."""

import multiprocessing
import os
import signal
import threading
from collections import deque
from concurrent.futures import Future, ProcessPoolExecutor
from pathlib import Path
from typing import Any

from nemo_minordpo.prepare.chunk import write_part
from nemo_minordpo.prepare.recipe import MakePair, Recipe
from nemo_minordpo.prepare.sources import Row


class Makers:
    """The processes that make parts; with one worker this process itself."""

    def __init__(self, recipe: Recipe, scratch: Path, *, workers: int):
        self._recipe, self._scratch, self._workers = recipe, scratch, workers
        self._pool: ProcessPoolExecutor | None = None
        self._make: MakePair | None = None
        self._pending: deque[Future[Any]] = deque()

    def __enter__(self) -> "Makers":
        return self

    def make(self, path: Path, rows: list[Row]) -> None:
        if self._workers <= 1:
            self._make = self._make or self._recipe.open(self._scratch)
            _write(self._recipe, self._make, path, rows)
            return
        if self._pool is None:
            # spawn: forked children of a process with threads can hang
            self._pool = ProcessPoolExecutor(
                self._workers,
                mp_context=multiprocessing.get_context("spawn"),
                initializer=_open_in_worker,
                initargs=(self._recipe, self._scratch),
            )
        self._pending.append(self._pool.submit(_make_in_worker, path, rows))
        if len(self._pending) > 2 * self._workers:
            self._pending.popleft().result()

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        try:
            while self._pending and kind is None:
                self._pending.popleft().result()
        finally:
            if self._pool is not None:
                self._pool.shutdown(cancel_futures=True)


_worker: tuple[Recipe, MakePair] | None = None


def _open_in_worker(recipe: Recipe, scratch: Path) -> None:
    global _worker
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C ends the parent, which ends its workers
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _worker = (recipe, recipe.open(scratch))


def _end_with_parent() -> None:
    """A parent that is killed cannot end its workers, and they would wait for rows for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _make_in_worker(path: Path, rows: list[Row]) -> tuple[int, int]:
    assert _worker is not None
    return _write(*_worker, path, rows)


def _write(recipe: Recipe, make: MakePair, path: Path, rows: list[Row]) -> tuple[int, int]:
    return write_part(path, rows, make=make, seed=recipe.seed, ignore_columns=recipe.ignore_columns)
