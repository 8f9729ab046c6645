"""Matrix products on CPUs, where torch chooses a slow library.

- Float32 on AMD: torch calls MKL, which runs AVX2 code there; oneDNN runs AVX-512. On a two-core EPYC (Zen 5), MKL
  reaches 200 GFLOP/s and oneDNN, which torch also ships, 430.
- Bfloat16 without bfloat16 instructions: oneDNN emulates them, many times slower than float32. The product of the same
  numbers in float32, rounded once, is the same sum.
"""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nemo_minordpo.host import StandIn
from nemo_minordpo.host.processor import bfloat16_instructions

# Below this many multiplications the call costs more than it saves.
_SMALL = 1 << 18
_library: Any = None
_products: dict[torch.dtype, Callable[[Tensor, Tensor], Tensor]] = {}


def install() -> list[StandIn]:
    """Replace `aten::mm` on CPUs for the types in which it is slow here (torch 2.5 - 2.13)."""
    global _library
    active = []
    if _is_amd_with_avx512() and torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available():
        if not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
            raise ImportError(f"torch {torch.__version__} has no mkldnn._linear_pointwise: nemo_minordpo.host.matmul")
        _products[torch.float32] = _through_onednn
        active.append(StandIn("a fast MKL (it runs AVX2 code on AMD CPUs)", "float32 matrix products through oneDNN"))
    if not bfloat16_instructions():
        _products[torch.bfloat16] = _through_float32
        active.append(StandIn("bfloat16 instructions", "bfloat16 matrix products in float32, rounded once"))
    if active:
        _library = torch.library.Library("aten", "IMPL")
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*[Oo]verrid")
            _library.impl("mm", _mm, "CPU")
    return active


def _mm(left: Tensor, right: Tensor) -> Tensor:
    return _products.get(left.dtype, _of_torch)(left, right)


def _of_torch(left: Tensor, right: Tensor) -> Tensor:
    # the overload with `out` is still torch's own
    return torch.mm(left, right, out=left.new_empty(len(left), right.shape[1]))


def _through_float32(left: Tensor, right: Tensor) -> Tensor:
    return _mm(left.float(), right.float()).to(left.dtype)


def _through_onednn(left: Tensor, right: Tensor) -> Tensor:
    if len(left) * right.numel() <= _SMALL:
        return _of_torch(left, right)
    # oneDNN takes the second matrix in any layout but copies the first unless its rows are contiguous. A weight
    # gradient is a product over tokens with a transposed left side, so the smaller matrix goes first.
    if not left.is_contiguous() and right.shape[1] < len(left):
        return _linear(right.T, left).T.contiguous()
    return _linear(left, right.T)


def _linear(rows: Tensor, weight: Tensor) -> Tensor:
    """``rows @ weight.T``."""
    return torch.ops.mkldnn._linear_pointwise(rows, weight, None, "none", [], "")


def _is_amd_with_avx512() -> bool:
    description = Path("/proc/cpuinfo")
    text = description.read_text() if description.exists() else ""
    return "AuthenticAMD" in text and "avx512f" in text
