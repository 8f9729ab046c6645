"""Log-probabilities of response tokens when the vocabulary is split over tensor-parallel ranks.

T = response tokens, V = vocabulary, P = tensor-parallel size, R = responses.
"""

from typing import Any

import torch
from torch import Tensor
from torch.distributed import ProcessGroup, ReduceOp, all_reduce, get_rank, get_world_size


def vocab_parallel_token_log_probs(logits: Tensor, targets: Tensor, *, group: ProcessGroup | None) -> Tensor:
    """Log-probability of each target token when the vocabulary is split over ``group``.

    Same as ``full_logits.float().log_softmax(-1).gather(-1, targets[:, None])[:, 0]`` without gathering the vocabulary.

    Args:
        logits: [T, V / P], this rank's slice, in the order of ranks; upcast to float32 first; not modified.
        targets: [T], global token ids, already shifted by one. An id >= V cannot be seen here without a device
            synchronisation and would read as probability 1: the dataset refuses it.
        group: tensor-parallel group of size P; None = the vocabulary is whole.

    Returns:
        [T], float32, nats, equal on every rank of ``group``.

    Raises:
        ValueError: the shapes do not fit.

    Communication: three all-reduces of [T] forward, none backward.
    Source: the scheme of Megatron-LM ``tensor_parallel/cross_entropy.py``.
    """
    if logits.ndim != 2 or logits.shape[:-1] != targets.shape:
        raise ValueError(f"logits [T, V / P] and targets [T] expected, not {[*logits.shape]} and {[*targets.shape]}")
    return _VocabParallelTokenLogProbs.apply(logits, targets, group)


def mask_padded_vocabulary(logits: Tensor, *, vocab_size: int, group: ProcessGroup | None) -> Tensor:
    """Take the rows that pad the vocabulary to a round number out of the softmax.

    They are zeros and would have logit 0; the model that is exported does not have them.

    Args:
        logits: [T, V / P], this rank's slice; modified.
        vocab_size: tokens that exist, <= V.
        group: as in :func:`vocab_parallel_token_log_probs`.

    Returns:
        ``logits``, with -inf (and no gradient) from token ``vocab_size`` on.
    """
    start = 0 if group is None else get_rank(group) * logits.shape[-1]
    logits[:, max(vocab_size - start, 0) :] = -torch.inf
    return logits


def sequence_log_probs(token_log_probs: Tensor, *, row: Tensor, column: Tensor, num_rows: int) -> Tensor:
    """Sum of the token log-probabilities of each response.

    Laid out as a padded matrix and then summed: index_add would sum in no fixed order on a GPU. In float64: a
    log-ratio is a small difference of two such sums, and a float32 sum of -150 nats is rounded to 1.5e-5.

    Args:
        token_log_probs: [T], float32, nats.
        row: [T], the response that a token belongs to.
        column: [T], the token's place in its response, from 0.
        num_rows: R.

    Returns:
        [R], float64, nats; 0 for a response without tokens.
    """
    num_columns = int(column.max()) + 1 if column.numel() else 0
    padded = token_log_probs.new_zeros(num_rows, num_columns, dtype=torch.float64)
    return padded.index_put((row, column), token_log_probs.double()).sum(dim=1)


class _VocabParallelTokenLogProbs(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor, group: ProcessGroup | None) -> Tensor:
        probabilities, log_normaliser = _softmax(logits, group)
        local_targets, is_local = _local_targets(targets, logits.shape[-1], group)
        target_logits = logits.gather(-1, local_targets[:, None])[:, 0].float()
        target_logits = torch.where(is_local, target_logits, 0.0)
        if group is not None:
            all_reduce(target_logits, group=group)
        ctx.save_for_backward(probabilities, local_targets, is_local)
        ctx.dtype = logits.dtype
        return target_logits - log_normaliser

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        """D log p[target] / d logit[v] = (v == target) - p[v]."""
        probabilities, local_targets, is_local = ctx.saved_tensors
        grad_logits = probabilities * -grad[:, None]
        grad_logits.scatter_add_(-1, local_targets[:, None], (grad * is_local)[:, None])
        return grad_logits.to(ctx.dtype), None, None


def _softmax(logits: Tensor, group: ProcessGroup | None) -> tuple[Tensor, Tensor]:
    """This rank's part of the softmax [T, V / P], and the log of its normaliser [T]; both float32."""
    maximum = logits.max(dim=-1).values.float()
    if group is not None:
        all_reduce(maximum, op=ReduceOp.MAX, group=group)
    exponentials = (logits.float() - maximum[:, None]).exp_()
    total = exponentials.sum(dim=-1)
    if group is not None:
        all_reduce(total, group=group)
    return exponentials.div_(total[:, None]), total.log() + maximum


def _local_targets(targets: Tensor, slice_size: int, group: ProcessGroup | None) -> tuple[Tensor, Tensor]:
    """Targets as indices into this rank's slice (0 where the target is elsewhere), and whether they are in it."""
    start = 0 if group is None else get_rank(group) * slice_size
    is_local = (targets >= start) & (targets < start + slice_size)
    return torch.where(is_local, targets - start, 0), is_local


def group_or_none(group: ProcessGroup) -> ProcessGroup | None:
    """None for a group of one: the mathematics then needs no communication."""
    return None if get_world_size(group) == 1 else group
