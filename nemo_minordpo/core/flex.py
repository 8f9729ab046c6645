"""FlexAttention of a row of packed pairs, for CUDA: one kernel, without the blocks of scores that nothing needs.

S = places of the row, D = head size, N = blocks of BLOCK_SIZE places of the row, at least two.
structure: start, branch, chosen_end, end of each pair, as core/pair_packing.py lays them out.
"""

from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from nemo_minordpo.core.transfer import to_device

Structure = tuple[tuple[int, ...], ...]

# Row structures whose lists of blocks are cached: those of the micro-batches that a pipeline has in flight.
STRUCTURES = 64

# Places of a block of queries and of keys. Inductor takes no smaller one for the backward pass on sm_90 at D = 64 and
# 128 (torch 2.11). In rows of GSM8K's pairs, 254 places each, 2.8 times as many scores are computed as needed (1.9 with
# 64), which at 4,096 places is 2 % of the FLOPs of a layer of 1.5B.
BLOCK_SIZE = 128

# Graphs that training and evaluation of a model compile: with and without gradients, for rows below 128 places (torch
# asks whether its kernel for few queries would do) and for all others. Beyond torch's own limit, 8, it is an error.
MAX_GRAPHS = 4

# Not the kernel for few queries: it has no configuration for some lengths below 128, and raises (torch 2.11).
_OPTIONS = {"FORCE_USE_FLEX_ATTENTION": True}

# Tiles by bytes of a number and head size: of scores forward, of dK and dV (1), of dQ (2). Inductor's own for sm_90
# need more registers than there are (torch 2.11, Triton 3.6). In bfloat16 each thread of the forward loop at D = 64
# moves kilobytes to and from local memory for every tile of scores, of the backward loop at D = 128 over 0.6 kB.
_BY_32_QUERIES = {"bwd_BLOCK_M1": 32, "bwd_BLOCK_N1": 128, "bwd_BLOCK_M2": 128, "bwd_BLOCK_N2": 64, "bwd_num_warps": 8}
_TILES: dict[tuple[int, int], dict[str, int]] = {
    (2, 32): {"bwd_BLOCK_M1": 32, "bwd_BLOCK_N1": 64, "bwd_BLOCK_M2": 64, "bwd_BLOCK_N2": 32},
    (2, 64): {"fwd_num_warps": 8, **_BY_32_QUERIES},
    (2, 128): {**_BY_32_QUERIES, "bwd_num_stages": 2},
    (4, 64): {"fwd_BLOCK_M": 64, "fwd_BLOCK_N": 32, "fwd_num_warps": 8, "fwd_num_stages": 2},
    (4, 128): {"fwd_num_warps": 8, "fwd_num_stages": 2, "bwd_num_warps": 8},
}
# Compiled with torch 2.11; an older one, as in NVIDIA's container, has other templates, and takes its own tiles.
_HAS_TILES = torch.__version__ >= "2.11"  # compared as versions, not as texts


class Blocks(NamedTuple):
    """What the queries of a row see, place by place and as lists of blocks (torch's BlockMask).

    starts, gaps, tails: [S], int32: a query sees the keys k <= query of ``[start, gap)`` and of ``[tail, ...)``.
    kv_indices: [1, 1, N, N], the blocks of keys that some query of a block of queries sees, but not every one in full,
        the first kv_num_blocks [1, 1, N] of each row; full_kv: that every query sees in full. q, full_q: the same
        lists for the backward pass, blocks of queries of each block of keys.
    """

    starts: Tensor
    gaps: Tensor
    tails: Tensor
    kv_num_blocks: Tensor
    kv_indices: Tensor
    full_kv_num_blocks: Tensor
    full_kv_indices: Tensor
    q_num_blocks: Tensor
    q_indices: Tensor
    full_q_num_blocks: Tensor
    full_q_indices: Tensor

    def mask(self) -> Any:
        """As torch's BlockMask."""
        from torch.nn.attention.flex_attention import BlockMask

        starts, gaps, tails, *lists = self

        def sees(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            return (key <= query) & (key >= starts[query]) & ((key < gaps[query]) | (key >= tails[query]))

        length = starts.shape[0]
        return BlockMask((length, length), *lists, BLOCK_SIZE=(BLOCK_SIZE, BLOCK_SIZE), mask_mod=sees)


def row_attention(query: Tensor, key: Tensor, value: Tensor, structure: Structure, scale: float | None) -> Tensor:
    """As :func:`nemo_minordpo.core.attention.pair_attention`, of [1, heads, S, D] on [1, groups, S, D].

    Raises:
        torch._dynamo.exc.FailOnRecompileLimitHit: more graphs than torch compiles of one function.
    """
    query, key, value = map(_dense, (query, key, value))
    return _compiled()(query, key, value, blocks(structure, query.shape[2], str(query.device)), scale)


def _dense(row: Tensor) -> Tensor:
    """As it is, or a copy where it is a part of a fused projection, its length marked as dynamic.

    A stride that does not follow from the sizes would be a variable of the kernels, which could then load no more than
    one number at a time.
    """
    dense = row.permute(2, 0, 1, 3).contiguous().permute(1, 2, 0, 3)
    torch._dynamo.mark_dynamic(dense, 2)
    return dense


@lru_cache(maxsize=1)
def _compiled() -> Any:
    # Without fullgraph torch runs the function uncompiled, with the S x S scores, once its limit of graphs is reached.
    return torch.compile(_attend, fullgraph=True)


def _attend(query: Tensor, key: Tensor, value: Tensor, seen: Blocks, scale: float | None) -> Tensor:
    """What is compiled: lengths are dynamic by their marks, while heads, D and strides are constants of the kernels."""
    from torch.nn.attention.flex_attention import flex_attention

    options: Any = dict(_OPTIONS)
    if query.is_cuda and _HAS_TILES:
        options.update(_TILES.get((query.dtype.itemsize, query.shape[3]), {}))
    return flex_attention(
        query, key, value, block_mask=seen.mask(), scale=scale, enable_gqa=query.shape[1] != key.shape[1],
        kernel_options=options,
    )  # fmt: skip


@lru_cache(maxsize=STRUCTURES)
def blocks(structure: Structure, length: int, device: str) -> Blocks:
    """What a row's places see; one for all layers, and for their recomputation.

    Padding is a pair of its own: a place that sees nothing would have no softmax.
    """
    # What is counted from S x N numbers is counted on the device: a CPU takes 15 ms for 8,192 places, in which it could
    # start the kernels of four layers.
    bounds = [to_device(tensor, torch.device(device)) for tensor in _bounds(structure, length)]
    seen = _seen_pairs(*bounds)
    full = seen == BLOCK_SIZE**2
    partial = (seen > 0) & ~full
    lists = [entry for listed in (partial, full, partial.T, full.T) for entry in _listed(listed)]
    made = Blocks(*bounds, *lists)
    # a dimension that torch has seen at one length only would be a constant of the first graph
    for tensor in made:
        for dimension in range(min(tensor.ndim - 1, 2), tensor.ndim):
            torch._dynamo.mark_dynamic(tensor, dimension)
    return made


def _bounds(structure: Structure, length: int) -> tuple[Tensor, Tensor, Tensor]:
    """Starts, gaps, tails (see :class:`Blocks`); shared tokens and the chosen tail see their pair without a gap."""
    used = structure[-1][-1] if structure else 0
    starts = torch.full((length,), used, dtype=torch.int32)
    for start, *_, end in structure:
        starts[start:end] = start
    gaps, tails = starts.clone(), starts.clone()
    for _, branch, chosen_end, end in structure:
        gaps[chosen_end:end], tails[chosen_end:end] = branch, chosen_end
    return starts, gaps, tails


def _seen_pairs(starts: Tensor, gaps: Tensor, tails: Tensor) -> Tensor:
    """[N, N]: how many of the pairs (query, key) of two blocks see each other, from S x N numbers.

    Of the keys below x, the query sees ``min(x, end) - start`` of each of its intervals, where that is positive.
    """
    length = len(starts)
    # torch makes a dimension of one a constant
    number = max(-(-length // BLOCK_SIZE), 2)
    edges = torch.arange(number + 1, dtype=torch.int32, device=starts.device) * BLOCK_SIZE
    start, gap, tail = starts[:, None], gaps[:, None], tails[:, None]
    end = torch.arange(1, length + 1, dtype=torch.int32, device=starts.device)[:, None]
    shared = torch.minimum(edges, torch.minimum(gap, end)).sub_(start).clamp_(min=0)
    below = torch.minimum(edges, end).sub_(tail).clamp_(min=0).add_(shared)
    by_place = torch.zeros(number * BLOCK_SIZE, number, dtype=torch.int32, device=starts.device)
    by_place[:length] = below.diff(dim=1)
    return by_place.view(number, BLOCK_SIZE, number).sum(dim=1)


def _listed(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """(number of the blocks in each row [1, 1, N], their indices in the first places [1, 1, N, N]), int32."""
    # ascending, then those that are not listed
    order = blocks.to(torch.int8).argsort(dim=1, descending=True, stable=True)
    return blocks.sum(dim=1).int()[None, None], order.int()[None, None]
