"""Float32 matrix products on AMD CPUs: torch calls MKL, which runs AVX2 code there; oneDNN runs AVX-512.

On a two-core EPYC (Zen 5), MKL reaches 200 GFLOP/s and oneDNN, which torch also ships, 430.
"""

import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nemo_minordpo.host import StandIn

# Below this many multiplications the call costs more than it saves.
_SMALL = 1 << 18
_library: Any = None


def install() -> list[StandIn]:
    """Route `aten::mm` on CPUs to oneDNN where it is faster (torch 2.5 - 2.13)."""
    global _library
    if not (_is_amd_with_avx512() and torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()):
        return []
    if not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        raise ImportError(f"torch {torch.__version__} has no mkldnn._linear_pointwise: nemo_minordpo.host.matmul")
    _library = torch.library.Library("aten", "IMPL")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*[Oo]verrid")
        _library.impl("mm", _mm, "CPU")
    return [StandIn("a fast MKL (it runs AVX2 code on AMD CPUs)", "float32 matrix products through oneDNN")]


def _mm(left: Tensor, right: Tensor) -> Tensor:
    if left.dtype == torch.float32 and len(left) * right.numel() > _SMALL:
        # oneDNN takes the second matrix in any layout but copies the first unless its rows are contiguous. A weight
        # gradient is a product over tokens with a transposed left side, so the smaller matrix goes first.
        if not left.is_contiguous() and right.shape[1] < len(left):
            return _linear(right.T, left).T.contiguous()
        return _linear(left, right.T)
    # the overload with `out` is still torch's own
    return torch.mm(left, right, out=left.new_empty(len(left), right.shape[1]))


def _linear(rows: Tensor, weight: Tensor) -> Tensor:
    """``rows @ weight.T``."""
    return torch.ops.mkldnn._linear_pointwise(rows, weight, None, "none", [], "")


def _is_amd_with_avx512() -> bool:
    description = Path("/proc/cpuinfo")
    text = description.read_text() if description.exists() else ""
    return "AuthenticAMD" in text and "avx512f" in text
