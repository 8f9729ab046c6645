"""The machine of a measurement: processor, matrix products before and after, and how busy other processes kept it.

Imports torch only in the process that measures the products.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_N, _REPEATS = 2048, 5
_TICKS = os.sysconf("SC_CLK_TCK")


def describe() -> dict[str, Any]:
    """Processor, and GFLOP/s of products of two 2048 x 2048 matrices on all cores, by type and library.

    torch: torch's own product; instead: the alternative of host/matmul.py; replaced: where that is used.
    """
    run = subprocess.run(
        [sys.executable, "-m", "tests.benchmarks.machine"], stdout=subprocess.PIPE, text=True, check=True
    )
    return json.loads(run.stdout)


def _measure() -> dict[str, Any]:
    import torch

    from nemo_minordpo.host import matmul
    from nemo_minordpo.host.processor import processor_name

    def gflops() -> dict[str, float]:
        return {name: product_rate(getattr(torch, name)) / 1e9 for name in ("float32", "bfloat16")}

    matmul.install()
    replaced = matmul.replaced()
    matmul.use([])
    own = gflops()
    matmul.use(own)
    instead = gflops()
    return {"processor": processor_name(), "gflops": {"torch": own, "instead": instead}, "replaced": replaced}


def product_rate(dtype: Any) -> float:
    """Floating-point operations per second: the best of five products of two matrices of 2048 x 2048."""
    import torch

    matrix = torch.randn(_N, _N).to(dtype)
    return 2 * _N**3 / min(seconds_of(lambda: matrix @ matrix) for _ in range(_REPEATS))


def seconds_of(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


class OtherLoad:
    """The share of all cores that other processes used while measured code ran."""

    def __init__(self) -> None:
        self._others = self._available = 0.0

    @contextmanager
    def beside(self, own: Iterable[int]) -> Iterator[None]:
        """Count what runs meanwhile, except the processes `own`."""
        own = list(own)
        before = _counters(own)
        yield
        busy, total, used = (after - start for after, start in zip(_counters(own), before, strict=True))
        self._others += max(busy - used, 0.0)
        self._available += total

    @property
    def share(self) -> float:
        return self._others / self._available if self._available else 0.0


def _counters(pids: list[int]) -> tuple[float, float, float]:
    """CPU seconds since boot: busy, busy or idle, and used by the processes."""
    values = [int(value) for value in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    idle = values[3] + values[4]
    # after the name, which may contain spaces: utime and stime are the 14th and 15th fields
    fields = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in pids]
    used = sum(int(one[11]) + int(one[12]) for one in fields)
    return (sum(values) - idle) / _TICKS, sum(values) / _TICKS, used / _TICKS


if __name__ == "__main__":
    print(json.dumps(_measure()))
