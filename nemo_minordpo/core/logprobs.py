"""Log-probabilities of response tokens from hidden states, without ever holding the logits of all tokens.

T = response tokens, H = hidden size, V = vocabulary, P = tensor-parallel size, R = responses.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.distributed import ProcessGroup, all_gather_into_tensor, get_rank, get_world_size

from nemo_minordpo.core.logits import statistics, surplus

# Bytes of logits that exist at a time. A CPU is fastest when they stay in its caches. On CUDA, 512 MiB are 4,096 tiles
# of 128 x 256 logits, 31 waves over 132 multiprocessors, for any number of tokens. Half of that doubles the passes over
# the gradient of the hidden states (3 to 6 ms of 116 at 16,384 tokens, H = 4,096, V = 151,936). Fitting the L2 cache
# (32 MiB) saves at most 3 ms of 14 at 4,096 tokens, H = 1,536, but needs 960 launches instead of 65.
LOGITS_BYTES_CPU, LOGITS_BYTES_CUDA = 8 << 20, 512 << 20


def vocab_parallel_log_probs(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    group: ProcessGroup | None,
    vocab_size: int | None = None,
    block_size: int | None = None,
) -> Tensor:
    """Log-probability of each target under ``softmax(hidden W^T)`` when the rows of W are split over ``group``.

    Same as ``(hidden.float() @ whole_weight.float().T).log_softmax(-1).gather(-1, targets[:, None])[:, 0]``. The
    vocabulary is processed in blocks of B rows: ``logsumexp_v = logsumexp over blocks of logsumexp_block``. Logits are
    float32 (float64 for float64 inputs), accumulated in float32 from the inputs' own dtype. The backward pass
    recomputes each block: ``d log p[t] / d logit[v] = (v == t) - p[v]``.

    Args:
        hidden: [T, H]. Its gradient is only this rank's part: the caller sums over ``group``.
        weight: [V / P, H], this rank's rows, in rank order. If Megatron accumulates in place into ``main_grad``
            (``grad_added_to_main_grad``), so does this function.
        targets: [T], global token ids. An id >= V cannot be detected here without a device synchronisation, and would
            give a log-probability of ``-logsumexp``: the dataset rejects such ids.
        group: tensor-parallel group of size P; None = the vocabulary is not split.
        vocab_size: number of real tokens, <= V; the remaining rows are padding and not part of the softmax. None = V.
        block_size: B; None = as many rows as the limit on bytes of logits allows.

    Returns:
        [T], float32, nats, equal on every rank of ``group``.

    Raises:
        ValueError: the shapes do not match.

    Memory beyond the inputs and their gradients: two T x B buffers, forward and backward, whatever V is.
    Communication: one all-gather of [2, T] forward, none backward.
    """
    if hidden.ndim != 2 or weight.ndim != 2 or hidden.shape[1] != weight.shape[1] or targets.shape != hidden.shape[:1]:
        shapes = [[*tensor.shape] for tensor in (hidden, weight, targets)]
        raise ValueError(f"expected hidden [T, H], weight [V / P, H] and targets [T], not {shapes}")
    start, num_rows = _own_rows(weight, group, vocab_size)
    block_size = block_size or _block_size(len(hidden), on_cuda=hidden.is_cuda)
    return _VocabParallelLogProbs.apply(hidden, weight, targets - start, group, num_rows, block_size)


def sequence_log_probs(token_log_probs: Tensor, credits: Tensor) -> Tensor:
    """Sum of the token log-probabilities of each response; a shared token counts towards both responses of its pair.

    Gathered into a padded matrix and then summed, because index_add has no fixed summation order on a GPU. In float64,
    because a log-ratio is a small difference of two such sums, and float32 rounds a sum of -150 nats to 1.5e-5.

    Args:
        token_log_probs: [T], nats.
        credits: [R, C], indices into ``token_log_probs``, padded with T.

    Returns:
        [R], float64, nats; 0 for a response without tokens.
    """
    return _with_padding(token_log_probs)[credits].sum(dim=1)


def shared_log_probs(token_log_probs: Tensor, credits: Tensor) -> Tensor:
    """Sum of the log-probabilities of the tokens that count towards both responses of a pair.

    Args:
        token_log_probs, credits: as in :func:`sequence_log_probs`; R = 2 m, chosen responses first.

    Returns:
        [m], float64, nats; 0 for a pair that shares no token of its responses.
    """
    chosen, rejected = credits[: len(credits) // 2], credits[len(credits) // 2 :]
    return _with_padding(token_log_probs)[chosen].where(chosen == rejected, 0.0).sum(dim=1)


def _with_padding(token_log_probs: Tensor) -> Tensor:
    """[T + 1], float64: padded credits refer to the last one, 0."""
    return torch.cat([token_log_probs.double(), token_log_probs.new_zeros(1, dtype=torch.float64)])


def num_tokens(credits: Tensor, *, num_targets: int) -> Tensor:
    """Number of tokens that :func:`sequence_log_probs` sums for each response: [R], int64.

    Args:
        credits: [R, C], as in :func:`sequence_log_probs`.
        num_targets: T.
    """
    return (credits != num_targets).sum(dim=1)


@torch.no_grad()
def vocab_parallel_argmax(
    hidden: Tensor, weight: Tensor, noise: Tensor | None, *, group: ProcessGroup | None, vocab_size: int | None = None
) -> Tensor:
    """The token with the highest logit after each place, or a sampled one.

    ``argmax_v (hidden W^T)[v] + noise[v]``. With noise from the standard Gumbel distribution this samples from
    ``softmax(hidden W^T)``, using the same random numbers on every layout (Gumbel 1954; Maddison et al. 2014).

    Args:
        hidden: [T, H].
        weight: [V / P, H], this rank's rows.
        noise: [T, V]; None = none.
        group, vocab_size: as in :func:`vocab_parallel_log_probs`.

    Returns:
        [T], token ids, equal on every rank of ``group``; ties go to the lowest id.
    """
    start, num_rows = _own_rows(weight, group, vocab_size)
    # float64, so that the all-gather does not round token ids
    best = hidden.new_zeros(2, len(hidden), dtype=torch.float64)
    best[0] = -torch.inf
    if num_rows:
        logits = _product(hidden, weight[:num_rows].T)
        if noise is not None:
            logits += noise[:, start : start + num_rows]
        best[0], tokens = logits.max(dim=1)
        best[1] = tokens + start
    if group is not None:
        parts = hidden.new_empty(2 * get_world_size(group), len(hidden), dtype=torch.float64)
        all_gather_into_tensor(parts, best, group=group)
        winner = parts[0::2].argmax(dim=0, keepdim=True)
        return parts[1::2].gather(0, winner)[0].long()
    return best[1].long()


def _own_rows(weight: Tensor, group: ProcessGroup | None, vocab_size: int | None) -> tuple[int, int]:
    """(first token id of this rank's rows, number of rows that are real tokens)."""
    start = 0 if group is None else get_rank(group) * len(weight)
    return start, len(weight) if vocab_size is None else min(max(vocab_size - start, 0), len(weight))


class _VocabParallelLogProbs(torch.autograd.Function):
    """Targets count from this rank's first row; those outside [0, num_rows) belong to another rank."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        group: ProcessGroup | None,
        num_rows: int,
        block_size: int,
    ) -> Tensor:
        log_normaliser = hidden.new_full((len(hidden),), -torch.inf, dtype=torch.float64)
        target_logits = torch.zeros_like(log_normaliser)
        for block in _blocks(num_rows, block_size):
            logits = _product(hidden, weight[block].T)
            of_block, targets_of_block = statistics(logits, targets - block.start)
            target_logits += targets_of_block
            # float64, because rounding errors of many blocks would add up
            log_normaliser = torch.logaddexp(log_normaliser, of_block)
            del logits  # free before the next block
        if group is not None:
            parts = hidden.new_empty(2 * get_world_size(group), len(hidden), dtype=torch.float64)
            all_gather_into_tensor(parts, torch.stack([log_normaliser, target_logits]), group=group)
            log_normaliser, target_logits = parts[0::2].logsumexp(dim=0), parts[1::2].sum(dim=0)
        ctx.save_for_backward(hidden, weight, targets, log_normaliser)
        ctx.sizes = num_rows, block_size
        return (target_logits - log_normaliser).to(_accumulation_dtype(hidden))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:  # type: ignore[override]
        hidden, weight, targets, log_normaliser = ctx.saved_tensors
        wants_hidden, wants_weight = ctx.needs_input_grad[:2]
        # DPO's margin does not depend on tokens that both responses share: their gradients cancel to exactly 0.
        # Skipping them means reading the values, which would force a wait on a GPU.
        rows = None if grad.is_cuda else grad.nonzero()[:, 0]
        if rows is not None:
            hidden, targets, log_normaliser, grad = (x[rows] for x in (hidden, targets, log_normaliser, grad))
        weight_grad = _WeightGradient(weight) if wants_weight else None
        grad_hidden = _backward(hidden, weight, targets, log_normaliser, grad[:, None], weight_grad, *ctx.sizes)
        if rows is not None:
            grad_hidden = torch.zeros_like(ctx.saved_tensors[0]).index_copy_(0, rows, grad_hidden)
        return (
            grad_hidden if wants_hidden else None,
            weight_grad.finish() if weight_grad is not None else None,
            *(None,) * 4,
        )


def _backward(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    log_normaliser: Tensor,
    grad: Tensor,
    weight_grad: "_WeightGradient | None",
    num_rows: int,
    block_size: int,
) -> Tensor:
    """The gradient of ``hidden``, [T, H]; ``grad`` is [T, 1]. The weight's gradient is added to ``weight_grad``."""
    log_normaliser = log_normaliser.to(grad.dtype)
    grad_hidden = torch.zeros_like(hidden, dtype=grad.dtype)
    scaled_hidden = (hidden * -grad).to(hidden.dtype).T
    if not hidden.is_cuda:
        # [H, T] in memory, so that CPU libraries need not copy the larger matrix in the products below. cuBLAS reads
        # either layout, but has no fast kernel if T, the row stride, is odd: 32 ms of a 395 ms step on an H200
        scaled_hidden = scaled_hidden.contiguous()
    for block in _blocks(num_rows, block_size):
        logits = _product(hidden, weight[block].T)
        # p - onehot; times -grad it is the gradient of the logits
        of_logits = surplus(logits, log_normaliser, targets - block.start, dtype=hidden.dtype)
        _add_product(grad_hidden, of_logits, weight[block])
        if weight_grad is not None:
            weight_grad.add(block, scaled_hidden, of_logits)
        del logits, of_logits  # free before the next block
    return (grad_hidden * -grad).to(hidden.dtype)


class _WeightGradient:
    """Accumulates the gradient of the head's weight, for autograd or in Megatron's main_grad.

    As in Megatron-Core's linear layers: after adding to main_grad, autograd gets a tensor with meaningless values, just
    to trigger the hooks of the gradient reduction. It gets zeros if another layer also contributes a gradient (an
    embedding tied to the head).
    """

    def __init__(self, weight: Tensor) -> None:
        self._weight: Any = weight
        self._in_place = getattr(weight, "main_grad", None) is not None and hasattr(weight, "grad_added_to_main_grad")
        self._sum = self._weight.main_grad if self._in_place else torch.zeros_like(weight)

    def add(self, block: slice, left: Tensor, right: Tensor) -> None:
        """Add ``(left @ right).T``, of [H, T] and [T, B]; each block once."""
        if self._in_place or right.is_cuda:
            _add_product(self._sum[block].T, left, right)
        else:
            # for autograd, the sum is rounded to the weight's type in any case; as [B, H], it need not be transposed
            self._sum[block] = right.T @ left.T

    def finish(self) -> Tensor:
        if not self._in_place:
            return self._sum
        self._weight.grad_added_to_main_grad = True
        make = torch.zeros_like if getattr(self._weight, "zero_out_wgrad", False) else torch.empty_like
        return make(self._weight)


def _product(left: Tensor, right: Tensor) -> Tensor:
    """``left @ right`` with a float32 result: products of bfloat16 numbers must not be rounded to bfloat16."""
    dtype = _accumulation_dtype(left)
    if left.dtype == dtype:
        return left @ right
    if left.is_cuda and _HAS_OUT_DTYPE:
        return torch.mm(left, right, out_dtype=dtype)  # pyright: ignore[reportCallIssue]
    with _rounding_factors_to(left.dtype):
        return left.to(dtype) @ right.to(dtype)


@contextmanager
def _rounding_factors_to(dtype: torch.dtype) -> Iterator[None]:
    """Let a CPU use its bfloat16 instructions in float32 products of bfloat16 numbers, which this rounding keeps exact.

    Sums are float32. Torch has no CPU product of bfloat16 tensors with a float32 result.
    """
    if dtype != torch.bfloat16 or not _HAS_FP32_PRECISION:
        yield
        return
    settings: Any = torch.backends.mkldnn.matmul  # pyright: ignore[reportAttributeAccessIssue]
    before = settings.fp32_precision
    settings.fp32_precision = "bf16"
    try:
        yield
    finally:
        settings.fp32_precision = before


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """``total += left @ right``, on CUDA in a single pass over a float32 total."""
    if left.is_cuda and _ADDS_TO_FLOAT and left.dtype != total.dtype == torch.float32:
        torch.addmm(total, left, right, out_dtype=total.dtype, out=total)  # pyright: ignore[reportCallIssue]
    else:
        total += _product(left, right)


# from torch 2.9, on CPUs
_HAS_FP32_PRECISION = hasattr(getattr(torch.backends.mkldnn, "matmul", None), "fp32_precision")
# from torch 2.8, on CUDA
_HAS_OUT_DTYPE = "dtype" in torch.ops.aten.mm.overloads()
# torch 2.8 to 2.10 require the sum to have the dtype of the factors
_ADDS_TO_FLOAT = torch.__version__ >= "2.11"  # compares as a version, not as a string


def _accumulation_dtype(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)


def _blocks(num_rows: int, block_size: int) -> list[slice]:
    return [slice(first, min(first + block_size, num_rows)) for first in range(0, num_rows, block_size)]


def _block_size(num_tokens: int, *, on_cuda: bool) -> int:
    """Vocabulary rows per block, a multiple of 128."""
    rows = (LOGITS_BYTES_CUDA if on_cuda else LOGITS_BYTES_CPU) // (4 * max(num_tokens, 1))
    return max(rows // 128, 1) * 128


def group_or_none(group: ProcessGroup) -> ProcessGroup | None:
    """None for a group of one rank, which needs no communication."""
    return None if get_world_size(group) == 1 else group
