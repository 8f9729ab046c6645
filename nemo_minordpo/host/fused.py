"""CPU versions of operations that Transformer Engine and Apex fuse on GPUs: same values, fewer passes over memory.

As hand-written autograd functions, these three are 1.5 to 3 times faster than composed from torch operations. That
matters because everything between two matrix products is bound by memory bandwidth.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import silu


class RMSNorm(torch.nn.RMSNorm):
    """``y = x * r * weight`` with ``r = (mean(x^2) + eps)^-1/2`` over the last dimension."""

    def forward(self, x: Tensor) -> Tensor:
        """[..., H] -> [..., H]."""
        return _RMSNorm.apply(x, self.weight, self.eps)


class ZeroCenteredRMSNorm(RMSNorm):
    """:class:`RMSNorm` by ``1 + weight``, as Gemma stores it; the sum is in float32, since bfloat16 would round it."""

    def reset_parameters(self) -> None:
        torch.nn.init.zeros_(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        """[..., H] -> [..., H]."""
        return _RMSNorm.apply(x, 1 + self.weight.to(torch.promote_types(x.dtype, torch.float32)), self.eps)


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        # at least float32, also inside: a rounded norm would scale the whole row
        wide = torch.promote_types(x.dtype, torch.float32)
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=wide)
        inverse = norm.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, inverse)
        return (x * inverse).mul_(weight).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:  # type: ignore[override]
        """``dx = r * (g - n * mean(g * n))`` with ``n = x * r`` and ``g = grad * weight``; ``dw = sum(grad * n)``."""
        x, weight, inverse = ctx.saved_tensors
        normed = x * inverse
        grad = grad.to(normed.dtype)
        of_weight = (grad * normed).flatten(0, -2).sum(dim=0).to(weight.dtype) if ctx.needs_input_grad[1] else None
        grad = grad * weight
        # one dot product per row: no temporary of the size of x
        mean = torch.einsum("...h,...h->...", grad, normed).unsqueeze(-1).div_(x.shape[-1])
        return grad.addcmul_(normed, mean, value=-1.0).mul_(inverse).to(x.dtype), of_weight, None


def swiglu(x: Tensor) -> Tensor:
    """``silu(gate) * up`` with x = [gate, up]: [..., 2 F] -> [..., F]."""
    return _SwiGLU.apply(x)


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        gate, up = x.chunk(2, dim=-1)
        return silu(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        (x,) = ctx.saved_tensors
        gate, up = x.chunk(2, dim=-1)
        both = torch.empty_like(x)
        grad_gate, grad_up = both.chunk(2, dim=-1)
        torch.mul(grad, silu(gate), out=grad_up)
        torch.ops.aten.silu_backward.grad_input(grad * up, gate, grad_input=grad_gate)
        return both


def rotate(x: Tensor, angles: Tensor) -> Tensor:
    """Rotary embedding, not interleaved, over all dimensions of a head.

    Args:
        x: [S, B, heads, D].
        angles: [S, 1, 1, D], equal in both halves of D.
    """
    half = angles[..., : angles.shape[-1] // 2]
    return _Rotation.apply(x, half.cos().to(x.dtype), half.sin().to(x.dtype))


class _Rotation(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _rotated(x, cos, sin)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:  # type: ignore[override]
        cos, sin = ctx.saved_tensors
        return _rotated(grad, cos, -sin), None, None


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    result = torch.empty_like(x, memory_format=torch.contiguous_format)
    (first, second), (out_first, out_second) = x.chunk(2, dim=-1), result.chunk(2, dim=-1)
    torch.mul(first, cos, out=out_first).addcmul_(second, sin, value=-1.0)
    torch.mul(second, cos, out=out_second).addcmul_(first, sin)
    return result
