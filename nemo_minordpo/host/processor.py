"""What this machine's processor computes bfloat16 with."""

import time
from pathlib import Path

import torch
from torch import Tensor

# as Linux names them: Intel and AMD; Intel's tiles; Arm
_BFLOAT16 = ("avx512_bf16", "amx_bf16", "bf16")
_N, _REPEATS = 1024, 5


def bfloat16_instructions() -> list[str]:
    """The bfloat16 instructions of this processor, by Linux's names; none if the system does not list any."""
    description = Path("/proc/cpuinfo")
    words = set(description.read_text().split()) if description.exists() else set()
    return [name for name in _BFLOAT16 if name in words]


def bfloat16_in_words() -> str:
    """What `precision=bf16` gains on this processor, in one line."""
    if found := bfloat16_instructions():
        return f"this processor has bfloat16 instructions ({', '.join(found)})"
    return (
        "this processor has no bfloat16 instructions: precision=bf16 saves memory but no time, because matrix products "
        "are computed in float32 and rounded"
    )


def bfloat16_speed() -> float:
    """How many times as fast as float32's are bfloat16's matrix products here; measured in a fraction of a second."""
    with torch.random.fork_rng():
        factors = torch.randn(2, _N, _N)
    return _seconds(factors) / _seconds(factors.bfloat16())


def _seconds(factors: Tensor) -> float:
    """The best of a few products."""
    left, right = factors
    best = float("inf")
    for _ in range(_REPEATS):
        started = time.perf_counter()
        torch.mm(left, right)
        best = min(best, time.perf_counter() - started)
    return best
