"""Worker processes that make pairs from chunks of rows."""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nemo_minordpo.errors import UserError
from nemo_minordpo.prepare.chunk import MadeChunk, make_chunk
from nemo_minordpo.prepare.recipe import MakePair, Recipe
from nemo_minordpo.prepare.rows import Row


def made_in_order(
    chunks: Iterable[list[Row]], *, recipe: Recipe, scratch: Path, workers: int
) -> Generator[MadeChunk, None, None]:
    """Make pairs from the chunks and yield the results in order; each has a file in `scratch`.

    A single worker is this process itself. Otherwise, each worker has one chunk, and two more wait for the first free
    worker.

    Raises:
        UserError: a worker process ended unexpectedly.
    """
    if workers == 1:
        make = recipe.open(scratch)
        for path, rows in _with_paths(chunks, scratch):
            yield make_chunk(path, rows, recipe=recipe, make=make)
        return
    pending: deque[Future[MadeChunk]] = deque()
    with worker_pool(workers, _open_in_worker, recipe, scratch) as pool:
        for path, rows in _with_paths(chunks, scratch):
            pending.append(pool.submit(_make_in_worker, path, rows))
            if len(pending) > workers + 1:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


@contextmanager
def worker_pool(workers: int, open_worker: Callable[..., None], *arguments: Any) -> Iterator[ProcessPoolExecutor]:
    """Processes that end with this one, and first call `open_worker` with the arguments.

    Raises:
        UserError: a worker process ended unexpectedly.
    """
    # spawn: forked children of a process with threads can hang
    pool = ProcessPoolExecutor(
        workers,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_begin,
        initargs=(open_worker, arguments),
    )
    try:
        yield pool
    except BrokenProcessPool:
        raise UserError(
            "a worker process ended unexpectedly (out of memory?): run the same command again with fewer --workers"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def _with_paths(chunks: Iterable[list[Row]], scratch: Path) -> Iterator[tuple[Path, list[Row]]]:
    return ((scratch / f"rows-{number:06}", rows) for number, rows in enumerate(chunks))


_worker: tuple[Recipe, MakePair] | None = None


def _open_in_worker(recipe: Recipe, scratch: Path) -> None:
    global _worker
    _worker = (recipe, recipe.open(scratch))


def _begin(open_worker: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C ends the parent, which ends its workers
    threading.Thread(target=_end_with_parent, daemon=True).start()
    open_worker(*arguments)


def _end_with_parent() -> None:
    """Exit with the parent: a killed parent cannot stop its workers, which would wait for rows forever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _make_in_worker(path: Path, rows: list[Row]) -> MadeChunk:
    assert _worker is not None
    recipe, make = _worker
    return make_chunk(path, rows, recipe=recipe, make=make)
