"""What the head does with a block of logits: their part of the softmax forward, their gradient backward.

On a CPU step by step, in place. On CUDA each is one function under torch.compile: forward the logits are read once,
backward read once and written once, where one kernel per step would read or write them six times.

T = tokens, B = tokens of the vocabulary in the block. logits: [T, B], float32 or float64; they are used up.
columns: [T], where in the block the target of each token lies; below 0 and from B on it lies in another block.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

# Graphs that torch compiles of each function, whatever T and B are. Beyond torch's own limit, 8, it is an error.
MAX_GRAPHS = 1
# A block with fewer tokens or columns is left to the steps: torch would compile sizes of 0 and 1 on their own, and
# Inductor finds maximum and sum in one pass only where it knows that it is not unrolled, from 8 columns on.
_SMALLEST = 8


def statistics(logits: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
    """``(log sum_v exp(logit[v]), logit[target])``: [T], float64; and [T], 0 for a target in another block."""
    if _is_compiled(logits):
        return _compiled(fused_statistics)(logits, columns)
    targets = _target_logits(logits, columns)
    maximum = logits.amax(dim=1)
    total = logits.sub_(maximum[:, None]).exp_().sum(dim=1)
    return maximum.double() + total.double().log(), targets


def surplus(logits: Tensor, log_normaliser: Tensor, columns: Tensor, *, dtype: torch.dtype) -> Tensor:
    """``p - onehot(target)``, [T, B] in ``dtype``: times -1 it is the gradient of log p[target] by the logits.

    log_normaliser: [T], of the whole vocabulary, in the logits' dtype.
    """
    if _is_compiled(logits):
        return _compiled(fused_surplus)(logits, log_normaliser, columns, dtype)
    inside, columns = _in_block(logits, columns)
    probabilities = logits.sub_(log_normaliser[:, None]).exp_()
    return probabilities.scatter_add_(1, columns, -inside[:, None].to(logits.dtype)).to(dtype)


def fused_statistics(logits: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
    """What :func:`statistics` compiles. In this form Inductor finds maximum and sum in one pass."""
    torch._check(logits.shape[1] >= _SMALLEST)
    maximum = logits.amax(dim=1, keepdim=True)
    total = (logits - maximum).exp().sum(dim=1, keepdim=True)
    return (maximum.double() + total.double().log())[:, 0], _target_logits(logits, columns)


def fused_surplus(logits: Tensor, log_normaliser: Tensor, columns: Tensor, dtype: torch.dtype) -> Tensor:
    """What :func:`surplus` compiles."""
    onehot = torch.arange(logits.shape[1], device=logits.device) == columns[:, None]
    return ((logits - log_normaliser[:, None]).exp() - onehot.to(logits.dtype)).to(dtype)


def _is_compiled(logits: Tensor) -> bool:
    return logits.is_cuda and min(logits.shape) >= _SMALLEST


@lru_cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    # Dynamic from the first call on; a split of the reduction, which the first call's sizes would decide, takes two
    # passes. Without fullgraph torch would run the function uncompiled beyond its limit of graphs.
    return torch.compile(function, dynamic=True, fullgraph=True, options={"split_reductions": False})


def _target_logits(logits: Tensor, columns: Tensor) -> Tensor:
    inside, columns = _in_block(logits, columns)
    return torch.where(inside, logits.gather(1, columns)[:, 0], 0.0)


def _in_block(logits: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
    """Whether each target lies in the block [T], and its column there [T, 1] (any other one where it does not)."""
    inside = (columns >= 0) & (columns < logits.shape[1])
    return inside, torch.where(inside, columns, 0)[:, None]
