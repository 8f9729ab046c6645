"""Find tensors with non-finite values."""

from collections.abc import Iterable

import torch
from torch import Tensor

from nemo_minordpo.errors import UserError


@torch.no_grad()
def tensors_not_finite(tensors: Iterable[tuple[str, Tensor]]) -> list[str]:
    """Names of the tensors that contain a NaN or an infinity.

    Only each tensor's minimum and maximum are checked, and these propagate NaN. So nothing of a tensor's size is
    allocated, and the device is read once for all tensors.
    """
    named = [(name, tensor) for name, tensor in tensors if tensor.is_floating_point() and tensor.numel()]
    if not named:
        return []
    flags = torch.stack([torch.stack(torch.aminmax(tensor)).isfinite().all() for _, tensor in named]).tolist()
    return [name for (name, _), is_finite in zip(named, flags, strict=True) if not is_finite]


def require_finite_tensors(tensors: Iterable[tuple[str, Tensor]], *, where: str) -> None:
    """Check that all tensors are finite.

    Raises:
        UserError: some are not; it says where and names the first few.
    """
    if names := tensors_not_finite(tensors):
        raise UserError(f"{where}: not finite: {first_of(names)}")


def first_of(items: list[str], *, count: int = 3) -> str:
    """The first few items and the number of the rest: `a, b, c and 4 more`."""
    more = f" and {len(items) - count} more" if len(items) > count else ""
    return ", ".join(items[:count]) + more
