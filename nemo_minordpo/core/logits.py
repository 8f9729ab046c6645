"""The head's work on one block of logits: its share of the softmax (forward), its gradient (backward).

On a CPU this runs operation by operation, in place. On CUDA each pass is one function under torch.compile: forward
reads the logits once, backward reads and writes them once. One kernel per operation would read or write them six times.

T = tokens, B = vocabulary entries in the block. logits: [T, B], float32 or float64; overwritten.
columns: [T], column of each token's target in the block; below 0 or >= B means that it is in another block.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

# Graphs that torch compiles per function, whatever T and B are. More than torch's own limit, 8, is an error.
MAX_GRAPHS = 1
# Smaller blocks run uncompiled: torch would compile sizes 0 and 1 separately, and Inductor computes maximum and sum in
# one pass only if it knows that the loop is not unrolled, i.e. from 8 columns on.
_SMALLEST = 8


def statistics(logits: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
    """``(log sum_v exp(logit[v]), logit[target])``: [T], float64; and [T], 0 if the target is in another block."""
    if _is_compiled(logits):
        return _compiled(fused_statistics)(logits, columns)
    targets = _target_logits(logits, columns)
    maximum = logits.amax(dim=1)
    total = logits.sub_(maximum[:, None]).exp_().sum(dim=1)
    return maximum.double() + total.double().log(), targets


def surplus(logits: Tensor, log_normaliser: Tensor, columns: Tensor, *, dtype: torch.dtype) -> Tensor:
    """``p - onehot(target)``, [T, B] in ``dtype``: the negative gradient of log p[target] with respect to the logits.

    log_normaliser: [T], over the whole vocabulary, in the logits' dtype.
    """
    if _is_compiled(logits):
        return _compiled(fused_surplus)(logits, log_normaliser, columns, dtype)
    inside, columns = _in_block(logits, columns)
    probabilities = logits.sub_(log_normaliser[:, None]).exp_()
    return probabilities.scatter_add_(1, columns, -inside[:, None].to(logits.dtype)).to(dtype)


def fused_statistics(logits: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
    """Compiled by :func:`statistics`. In this form Inductor computes maximum and sum in one pass."""
    torch._check(logits.shape[1] >= _SMALLEST)
    maximum = logits.amax(dim=1, keepdim=True)
    total = (logits - maximum).exp().sum(dim=1, keepdim=True)
    return (maximum.double() + total.double().log())[:, 0], _target_logits(logits, columns)


def fused_surplus(logits: Tensor, log_normaliser: Tensor, columns: Tensor, dtype: torch.dtype) -> Tensor:
    """Compiled by :func:`surplus`."""
    onehot = torch.arange(logits.shape[1], device=logits.device) == columns[:, None]
    return ((logits - log_normaliser[:, None]).exp() - onehot.to(logits.dtype)).to(dtype)


def _is_compiled(logits: Tensor) -> bool:
    return logits.is_cuda and min(logits.shape) >= _SMALLEST


@lru_cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    # Dynamic from the first call on. No split reductions: the first call's sizes would decide on them, and they take
    # two passes. Without fullgraph, torch would fall back to eager mode beyond its limit of graphs.
    return torch.compile(function, dynamic=True, fullgraph=True, options={"split_reductions": False})


def _target_logits(logits: Tensor, columns: Tensor) -> Tensor:
    inside, columns = _in_block(logits, columns)
    return torch.where(inside, logits.gather(1, columns)[:, 0], 0.0)


def _in_block(logits: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
    """Whether each target is in the block [T], and its column [T, 1] (0 if it is not)."""
    inside = (columns >= 0) & (columns < logits.shape[1])
    return inside, torch.where(inside, columns, 0)[:, None]
