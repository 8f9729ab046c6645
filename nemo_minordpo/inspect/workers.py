"""Measure all parts of the files, in several processes."""

import os
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np

from nemo_minordpo.errors import UserError
from nemo_minordpo.inspect.lines import Part, read_pair
from nemo_minordpo.inspect.measuring import Measured, Measuring
from nemo_minordpo.inspect.shingles import shingles
from nemo_minordpo.prepare.workers import worker_pool

_SAMPLE = 2000  # prompts
_COMMON = 0.05  # of them
_FEWEST_HOLDERS = 10  # prompts; in a small set, fewer may be copies of one another


def common_shingles(parts: Sequence[Part]) -> np.ndarray:
    """Sorted shingles that at least 5 %, and 10, of a sample of prompts have: templates, system turns, instructions.

    They are left out when prompts are compared; otherwise a long system turn would make all prompts alike.
    """
    found = []
    for part in parts:
        for _, _, line in islice(part.lines(), -(-_SAMPLE // len(parts))):
            try:
                found.append(shingles(read_pair(line).prompt))
            except UserError:
                continue
    values, counts = np.unique(np.concatenate([np.empty(0, np.uint64), *found]), return_counts=True)
    return values[counts >= max(_FEWEST_HOLDERS, _COMMON * len(found))]


def measured(parts: Sequence[Part], *, workers: int | None, **options: Any) -> Iterator[Measured]:
    """The results for the parts, in order.

    Args:
        parts: of the files.
        workers: processes; None = one per core.
        options: of :class:`Measuring`.

    Raises:
        UserError: a worker process ended unexpectedly.
    """
    workers = min(workers or len(os.sched_getaffinity(0)), len(parts))
    if workers <= 1:
        measuring = Measuring(**options)
        yield from map(measuring.measure, parts)
        return
    with worker_pool(workers, _open_in_worker, options) as pool:
        yield from pool.map(_measure_in_worker, parts)


# One per process; worker functions cannot close over it.
_measuring: list[Measuring] = []


def _open_in_worker(options: dict[str, Any]) -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # there is a process per core already
    _measuring.append(Measuring(**options))


def _measure_in_worker(part: Part) -> Measured:
    return _measuring[0].measure(part)
