"""FlexAttention over a row of packed pairs, for CUDA: one kernel that skips blocks of scores nobody needs.

S = places in the row, D = head size, N = blocks of BLOCK_SIZE places in the row, at least two.
structure: start, branch, chosen_end, end of each pair, as in core/pair_packing.py.
"""

from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from nemo_minordpo.core.transfer import to_device

Structure = tuple[tuple[int, ...], ...]

# Row structures with cached block lists: enough for the micro-batches that a pipeline has in flight.
STRUCTURES = 64

# Places in a block of queries or keys. Inductor accepts no smaller block for the backward pass on sm_90 at D = 64 and
# 128 (torch 2.11). On rows of GSM8K pairs, 254 places each, the kernel computes 2.8 times the scores needed (1.9 with
# 64). At 4,096 places that is 2 % of the FLOPs of a layer of a 1.5B model.
BLOCK_SIZE = 128

# Graphs compiled in training and evaluating a model: with and without gradients, each for rows below 128 places (torch
# checks whether its few-query kernel applies) and for longer ones. More than torch's own limit, 8, is an error.
MAX_GRAPHS = 4

# Never the few-query kernel: it lacks a configuration for some lengths below 128 and raises (torch 2.11).
_OPTIONS = {"FORCE_USE_FLEX_ATTENTION": True}

# Tiles by (bytes per number, head size): of scores (fwd), of dK and dV (1), of dQ (2). Inductor's own tiles for sm_90
# need more registers than there are (torch 2.11, Triton 3.6): in bfloat16, each thread spills kilobytes to local memory
# per tile of scores in the forward loop at D = 64, and over 0.6 kB in the backward loop at D = 128.
_BY_32_QUERIES = {"bwd_BLOCK_M1": 32, "bwd_BLOCK_N1": 128, "bwd_BLOCK_M2": 128, "bwd_BLOCK_N2": 64, "bwd_num_warps": 8}
_TILES: dict[tuple[int, int], dict[str, int]] = {
    (2, 32): {"bwd_BLOCK_M1": 32, "bwd_BLOCK_N1": 64, "bwd_BLOCK_M2": 64, "bwd_BLOCK_N2": 32},
    (2, 64): {"fwd_num_warps": 8, **_BY_32_QUERIES},
    (2, 128): {**_BY_32_QUERIES, "bwd_num_stages": 2},
    (4, 64): {"fwd_BLOCK_M": 64, "fwd_BLOCK_N": 32, "fwd_num_warps": 8, "fwd_num_stages": 2},
    (4, 128): {"fwd_num_warps": 8, "fwd_num_stages": 2, "bwd_num_warps": 8},
}
# Chosen for torch 2.11; older releases, such as the one in NVIDIA's container, have other templates and use their own.
_HAS_TILES = torch.__version__ >= "2.11"  # compares as a version, not as a string


class Blocks(NamedTuple):
    """The keys that each query of a row sees, per place and as lists of blocks (torch's BlockMask).

    starts, gaps, tails: [S], int32: a query sees the keys k <= query in ``[start, gap)`` and ``[tail, ...)``.
    kv_indices: [1, 1, N, N], for each block of queries the key blocks that it sees in part: the first
        kv_num_blocks [1, 1, N] entries of its row. full_kv: the key blocks that it sees in full. q, full_q: the same
        for the backward pass, lists of query blocks for each block of keys.
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
    """Like :func:`nemo_minordpo.core.attention.pair_attention`: queries [1, heads, S, D], keys [1, groups, S, D].

    Raises:
        torch._dynamo.exc.FailOnRecompileLimitHit: torch's limit of graphs per function is exceeded.
    """
    query, key, value = map(_dense, (query, key, value))
    return _compiled()(query, key, value, blocks(structure, query.shape[2], str(query.device)), scale)


def _dense(row: Tensor) -> Tensor:
    """The row itself, or a copy if it is a slice of a fused projection; its length is marked as dynamic.

    A stride that does not follow from the sizes would become a kernel variable, and the kernel could then load only one
    number at a time.
    """
    dense = row.permute(2, 0, 1, 3).contiguous().permute(1, 2, 0, 3)
    torch._dynamo.mark_dynamic(dense, 2)
    return dense


@lru_cache(maxsize=1)
def _compiled() -> Any:
    # Without fullgraph, torch falls back to eager mode and S x S scores once it reaches its limit of graphs.
    return torch.compile(_attend, fullgraph=True)


def _attend(query: Tensor, key: Tensor, value: Tensor, seen: Blocks, scale: float | None) -> Tensor:
    """The compiled function: lengths are marked as dynamic; heads, D and strides are kernel constants."""
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
    """The blocks of a row, shared by all layers and their recomputation.

    Padding counts as a pair of its own: a place that sees nothing would have no softmax.
    """
    # Counting over S x N numbers runs on the device: a CPU takes 15 ms for 8,192 places, enough time to launch the
    # kernels of four layers.
    bounds = [to_device(tensor, torch.device(device)) for tensor in _bounds(structure, length)]
    seen = _seen_pairs(*bounds)
    full = seen == BLOCK_SIZE**2
    partial = (seen > 0) & ~full
    lists = [entry for listed in (partial, full, partial.T, full.T) for entry in _listed(listed)]
    made = Blocks(*bounds, *lists)
    # otherwise the first graph would bake in the lengths as constants
    for tensor in made:
        for dimension in range(min(tensor.ndim - 1, 2), tensor.ndim):
            torch._dynamo.mark_dynamic(tensor, dimension)
    return made


def _bounds(structure: Structure, length: int) -> tuple[Tensor, Tensor, Tensor]:
    """Starts, gaps, tails (see :class:`Blocks`); shared tokens and the chosen tail have no gap."""
    used = structure[-1][-1] if structure else 0
    starts = torch.full((length,), used, dtype=torch.int32)
    for start, *_, end in structure:
        starts[start:end] = start
    gaps, tails = starts.clone(), starts.clone()
    for _, branch, chosen_end, end in structure:
        gaps[chosen_end:end], tails[chosen_end:end] = branch, chosen_end
    return starts, gaps, tails


def _seen_pairs(starts: Tensor, gaps: Tensor, tails: Tensor) -> Tensor:
    """[N, N]: number of (query, key) pairs of two blocks where the query sees the key, from S x N numbers.

    Of the keys below x, a query sees ``max(min(x, end) - start, 0)`` in each of its intervals.
    """
    length = len(starts)
    # torch treats a dimension of size one as a constant
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
    """(number of blocks per row [1, 1, N], block indices, listed ones first [1, 1, N, N]), int32, contiguous.

    The kernels read the indices of a row one after another in memory, whatever the tensor's strides say, and argsort
    keeps the strides of its input: a transposed list would be read as the first entries of the rows that follow.
    """
    # listed blocks in ascending order, then the others
    order = blocks.to(torch.int8).argsort(dim=1, descending=True, stable=True)
    return blocks.sum(dim=1).int()[None, None], order.to(torch.int32, memory_format=torch.contiguous_format)[None, None]
