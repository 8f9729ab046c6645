"""Matrix products on CPUs, where torch may choose a slow library.

- Float32: torch calls MKL, which runs AVX2 code on AMD processors; oneDNN, which torch also ships, runs AVX-512. On a
  two-core EPYC (Zen 5), MKL reaches 200 GFLOP/s and oneDNN 430; on Intel's processors they are about as fast.
- Bfloat16: without bfloat16 instructions oneDNN emulates them, many times slower than float32. The product of the same
  numbers in float32, rounded once, is the same sum.

Which is faster here is measured, not derived from the processor's name. The two libraries round differently, so all
ranks of a run, and a run that is resumed, must use the same one: train/products.py.
"""

import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nemo_minordpo.host import StandIn
from nemo_minordpo.host.processor import core_seconds

# An alternative is chosen if it is faster than torch's own product by this factor, well above what measurements vary.
_GAIN = 1.25
_SIZES = (256, 512, 1024)  # of the measured product: milliseconds
# Below this many multiplications the call costs more than it saves.
_SMALL = 1 << 18

Product = Callable[[Tensor, Tensor], Tensor]
_library: Any = None
_products: dict[torch.dtype, Product] = {}


def install() -> list[StandIn]:
    """Replace `aten::mm` on CPUs for the types in which an alternative is clearly faster here (torch 2.5 - 2.13)."""
    use([])
    for name in _ALTERNATIVES:  # in this order: bfloat16's alternative is made of float32 products
        if _gain(name) > _GAIN:
            use([*replaced(), name])
    return [_ALTERNATIVES[name].stand_in for name in replaced()]


def replaced() -> list[str]:
    """The types with products that are not torch's own in this process, such as ``["float32"]``."""
    return [name for name in _ALTERNATIVES if getattr(torch, name) in _products]


def use(names: Iterable[str]) -> None:
    """Replace the products of these types, and only of these.

    Args:
        names: result of :func:`replaced`, for example of another process.
    """
    global _library
    _products.clear()
    _products.update({getattr(torch, name): _ALTERNATIVES[name].product for name in names})
    if _products and _library is None:
        _library = torch.library.Library("aten", "IMPL")
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*[Oo]verrid")
            _library.impl("mm", _mm, "CPU")


def _gain(name: str) -> float:
    """How many times faster the alternative is than torch's own product; 0 if this torch cannot compute it."""
    alternative = _ALTERNATIVES[name]
    if not alternative.available():
        return 0.0
    rows, inner, columns = _SIZES
    with torch.random.fork_rng():
        left, right = torch.randn(rows, inner), torch.randn(inner, columns)
    left, right = (factor.to(getattr(torch, name)) for factor in (left, right))
    own, other = core_seconds(lambda: _of_torch(left, right), lambda: alternative.product(left, right))
    return own / other


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


def _has_onednn() -> bool:
    if not torch.backends.mkldnn.is_available():
        return False
    if not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        raise ImportError(f"torch {torch.__version__} has no mkldnn._linear_pointwise: nemo_minordpo.host.matmul")
    return True


@dataclass(frozen=True)
class _Alternative:
    """Another way to multiply two matrices of one type."""

    product: Product
    available: Callable[[], bool]
    stand_in: StandIn


# By the name of the type
_ALTERNATIVES = {
    "float32": _Alternative(
        _through_onednn, _has_onednn,
        StandIn("a fast MKL (it runs AVX2 code on AMD CPUs)", "float32 matrix products through oneDNN"),
    ),
    "bfloat16": _Alternative(
        _through_float32, lambda: True,
        StandIn("bfloat16 instructions", "bfloat16 matrix products in float32, rounded once"),
    ),
}  # fmt: skip
