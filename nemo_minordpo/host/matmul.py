"""Float32 matrix products on AMD's processors: MKL, which torch calls, runs AVX2 code there, oneDNN AVX-512.

Measured on a two-core EPYC (Zen 5): 200 GFLOP/s with MKL, 430 with oneDNN, which torch carries as well.
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
    """Give `aten::mm` on CPUs to oneDNN, where that is the faster one (torch 2.5 - 2.13)."""
    global _library
    if not (_is_amd_with_avx512() and torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()):
        return []
    if not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        raise ImportError(f"torch {torch.__version__} has no mkldnn._linear_pointwise: nemo_minordpo.host.matmul")
    _library = torch.library.Library("aten", "IMPL")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*[Oo]verrid")
        _library.impl("mm", _mm, "CPU")
    return [StandIn("a fast MKL (it runs AVX2 code on AMD's processors)", "float32 matrix products through oneDNN")]


def _mm(left: Tensor, right: Tensor) -> Tensor:
    if left.dtype == torch.float32 and len(left) * right.numel() > _SMALL:
        # oneDNN takes the second matrix in any layout and copies the first where its rows are not in one piece: of a
        # weight's gradient, a product over tokens, the smaller one is put first.
        if not left.is_contiguous() and right.shape[1] < len(left):
            return _linear(right.T, left).T.contiguous()
        return _linear(left, right.T)
    # the overload with `out` still is torch's own
    return torch.mm(left, right, out=left.new_empty(len(left), right.shape[1]))


def _linear(rows: Tensor, weight: Tensor) -> Tensor:
    """``rows @ weight.T``."""
    return torch.ops.mkldnn._linear_pointwise(rows, weight, None, "none", [], "")


def _is_amd_with_avx512() -> bool:
    description = Path("/proc/cpuinfo")
    text = description.read_text() if description.exists() else ""
    return "AuthenticAMD" in text and "avx512f" in text
