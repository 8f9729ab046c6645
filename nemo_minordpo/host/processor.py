"""This machine's processor: its name, and what it computes bfloat16 with."""

import os
import time
from collections.abc import Callable
from pathlib import Path

import torch

_DESCRIPTION = Path("/proc/cpuinfo")
# as Linux names them: Intel and AMD; Intel's tiles; Arm
_BFLOAT16 = ("avx512_bf16", "amx_bf16", "bf16")
_N, _REPEATS = 512, 5


def processor_name() -> str:
    """Model, bfloat16 instructions and number of usable cores, such as ``AMD EPYC 9R14 with avx512_bf16, 2 cores``.

    The instructions are part of it because virtual machines give processors of several generations the same name.
    """
    lines = _DESCRIPTION.read_text().splitlines() if _DESCRIPTION.exists() else []
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")
    found = bfloat16_instructions()
    instructions = f" with {' and '.join(found)}" if found else ""
    return f"{model}{instructions}, {len(os.sched_getaffinity(0))} cores"


def bfloat16_instructions() -> list[str]:
    """The bfloat16 instructions of this processor, by Linux's names; none if the system does not list any."""
    words = set(_DESCRIPTION.read_text().split()) if _DESCRIPTION.exists() else set()
    return [name for name in _BFLOAT16 if name in words]


def bfloat16_in_words() -> str:
    """What `precision=bf16` gains on this processor, in one line."""
    if found := bfloat16_instructions():
        return f"this processor has bfloat16 instructions ({', '.join(found)})"
    return (
        "this processor has no bfloat16 instructions, so precision=bf16 is no faster than fp32: matrix products are "
        "computed in float32 and then rounded"
    )


def bfloat16_speed() -> float:
    """Seconds of a float32 matrix product divided by those of a bfloat16 one."""
    with torch.random.fork_rng():
        factor = torch.randn(_N, _N)
    rounded = factor.bfloat16()
    float32, bfloat16 = core_seconds(lambda: torch.mm(factor, factor), lambda: torch.mm(rounded, rounded))
    return float32 / bfloat16


def core_seconds(*calls: Callable[[], object]) -> list[float]:
    """CPU seconds of each call on a single core, the best of a few in turn.

    CPU time of one thread hardly depends on what other processes do, unlike the time that passes.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        rounds = [[_seconds(call) for call in calls] for _ in range(_REPEATS)]
    finally:
        torch.set_num_threads(threads)
    return [min(times) for times in zip(*rounds, strict=True)]


def _seconds(call: Callable[[], object]) -> float:
    started = time.thread_time()
    call()
    return time.thread_time() - started
