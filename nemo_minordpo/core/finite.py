"""Which tensors hold a value that is not finite."""

from collections.abc import Iterable

import torch
from torch import Tensor

from nemo_minordpo.errors import UserError


@torch.no_grad()
def tensors_not_finite(tensors: Iterable[tuple[str, Tensor]]) -> list[str]:
    """The names of the tensors that hold a NaN or an infinity.

    A tensor's extremes decide, which NaN passes through: nothing of its size is allocated, and the device is read
    once for all of them.
    """
    named = [(name, tensor) for name, tensor in tensors if tensor.is_floating_point() and tensor.numel()]
    if not named:
        return []
    flags = torch.stack([torch.stack(torch.aminmax(tensor)).isfinite().all() for _, tensor in named]).tolist()
    return [name for (name, _), is_finite in zip(named, flags, strict=True) if not is_finite]


def require_finite_tensors(tensors: Iterable[tuple[str, Tensor]], *, where: str) -> None:
    """Refuse a model.

    Raises:
        ValueError: with the names of the first tensors that are not finite; `where` they are.
    """
    if names := tensors_not_finite(tensors):
        raise UserError(f"{where}: not finite: {first_of(names)}")


def first_of(items: list[str], *, count: int = 3) -> str:
    """The first of some items, in words, and how many there are more: `a, b, c and 4 more`."""
    more = f" and {len(items) - count} more" if len(items) > count else ""
    return ", ".join(items[:count]) + more
