"""FlexAttention as its kernels compute it, from the lists of blocks as they lie in memory.

The kernels mask the scores of listed blocks and leave those of full blocks as they are. The forward pass and the
gradient of queries walk the lists per block of queries, the gradients of keys and values those per block of keys. Each
takes the entries of a list one after another from memory, wherever the tensor's strides would put them. So a list that
is wrong, doubled, or not contiguous gives what it gives on a GPU, gradients that are not finite included.

S = places in the row; N = blocks; D = head size.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

# The layers of a model share the lists of a row. By the id of a list, which is kept, so that no other can have its id.
_KNOWN: dict[int, tuple[Tensor, Tensor, Tensor]] = {}
_ROWS_KNOWN = 4


def install() -> None:
    """Replace torch's FlexAttention, which has no backward pass on CPUs."""
    import torch.nn.attention.flex_attention as flex

    flex.flex_attention = flex_attention


def flex_attention(
    query: Tensor, key: Tensor, value: Tensor, *, block_mask: Any, scale: float | None = None,
    enable_gqa: bool = False, kernel_options: Any = None,
) -> Tensor:  # fmt: skip
    """torch's function of that name for one row: queries [1, heads, S, D], keys and values [1, groups, S, D]."""
    known = _KNOWN.get(id(block_mask.q_indices))
    if known is None:
        if len(_KNOWN) >= _ROWS_KNOWN:
            _KNOWN.clear()
        by_queries, by_keys = (counts.log() for counts in visits(block_mask, query.shape[2]))
        if torch.equal(by_queries, by_keys):
            by_keys = by_queries  # one exponential for both
        known = _KNOWN[id(block_mask.q_indices)] = block_mask.q_indices, by_queries, by_keys
    return _Attention.apply(query, key, value, *known[1:], scale)


def visits(block_mask: Any, length: int) -> tuple[Tensor, Tensor]:
    """How often the kernels add each score, float32: [S, S] by the lists of queries, and by those of keys."""
    places = torch.arange(length)
    sees = block_mask.mask_mod(torch.tensor(0), torch.tensor(0), places[:, None], places[None, :])

    def per_place(blocks: Tensor) -> Tensor:
        rows, columns = block_mask.BLOCK_SIZE
        return blocks.repeat_interleave(rows, dim=0).repeat_interleave(columns, dim=1)[:length, :length]

    def scores(read: Callable[[str], Tensor]) -> Tensor:
        return per_place(read("")) * sees + per_place(read("full_"))

    return scores(lambda kind: _read(block_mask, f"{kind}kv")), scores(lambda kind: _read(block_mask, f"{kind}q").T)


def _read(block_mask: Any, name: str) -> Tensor:
    """[N, N]: how often each row lists each block, its entries read one after another in memory."""
    counts, indices = getattr(block_mask, f"{name}_num_blocks")[0, 0], getattr(block_mask, f"{name}_indices")
    memory = indices.as_strided((indices.numel(),), (1,))
    found = torch.zeros(indices.shape[2:])
    for row, count in enumerate(counts.tolist()):
        start = row * indices.stride(2)
        for block in memory[start : start + count].tolist():
            found[row, block] += 1
    return found


class _Attention(torch.autograd.Function):
    """by_queries, by_keys: [S, S], logarithms of how often each score is added: -inf for one that is not."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, by_queries: Tensor, by_keys: Tensor, scale: float | None
    ) -> Tensor:
        scale = query.shape[3] ** -0.5 if scale is None else scale
        attended, normalisers = torch.empty_like(query), []
        for head, group in _heads(query, key):
            scores = _product(query[0, head], key[0, group].T).mul_(scale).add_(by_queries)
            normalisers.append(scores.logsumexp(dim=1, keepdim=True))
            weights = scores.sub_(normalisers[-1]).exp_()
            attended[0, head] = _product(weights.to(value.dtype), value[0, group])
        ctx.save_for_backward(query, key, value, attended, torch.stack(normalisers), by_queries, by_keys)
        ctx.scale, ctx.is_same = scale, by_keys is by_queries
        return attended

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:  # type: ignore[override]
        query, key, value, attended, normalisers, by_queries, by_keys = ctx.saved_tensors
        of_query = torch.empty_like(query)
        of_key, of_value = (torch.zeros_like(part, dtype=torch.float32) for part in (key, value))
        for head, group in _heads(query, key):
            scores = _product(query[0, head], key[0, group].T).mul_(ctx.scale).sub_(normalisers[head])
            change = _product(grad[0, head], value[0, group].T)
            change -= (attended[0, head].float() * grad[0, head].float()).sum(dim=1, keepdim=True)
            weights = (scores + by_queries).exp_()
            of_query[0, head] = _product((weights * change).to(key.dtype), key[0, group]) * ctx.scale
            if not ctx.is_same:
                weights = (scores + by_keys).exp_()
            of_value[0, group] += _product(weights.to(grad.dtype).T, grad[0, head])
            of_key[0, group] += _product((weights * change).to(query.dtype).T, query[0, head]) * ctx.scale
        return of_query, of_key.to(key.dtype), of_value.to(value.dtype), None, None, None


def _heads(query: Tensor, key: Tensor) -> list[tuple[int, int]]:
    """(head, its group of keys and values)."""
    ratio = query.shape[1] // key.shape[1]
    return [(head, head // ratio) for head in range(query.shape[1])]


def _product(left: Tensor, right: Tensor) -> Tensor:
    """With float32 sums, as tensor cores have."""
    return left.float() @ right.float()
