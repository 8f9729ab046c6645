"""What this machine's processor computes bfloat16 with."""

import time
from pathlib import Path

import torch
from torch import Tensor

_DESCRIPTION = Path("/proc/cpuinfo")
# as Linux names them: Intel and AMD; Intel's tiles; Arm
_BFLOAT16 = ("avx512_bf16", "amx_bf16", "bf16")
_N, _REPEATS = 1024, 10


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
    """Seconds of a float32 matrix product divided by those of a bfloat16 one, each the best of a few, in turn."""
    with torch.random.fork_rng():
        factors = torch.randn(2, _N, _N)
    times = [(_seconds(factors), _seconds(factors.bfloat16())) for _ in range(_REPEATS)]
    float32, bfloat16 = map(min, zip(*times, strict=True))
    return float32 / bfloat16


def _seconds(factors: Tensor) -> float:
    started = time.perf_counter()
    torch.mm(factors[0], factors[1])
    return time.perf_counter() - started
