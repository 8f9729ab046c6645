"""Attention of packed pairs: a place sees the earlier places of its own pair, and a rejected tail no chosen tail.

S = places of the row, heads and groups (of keys and values) of this tensor-parallel rank, D = head size.
segments: [m, 4], int64 on the CPU: start, branch, chosen_end, end of each pair, as core/pair_packing.py lays them out.
"""

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

# Row structures whose masks are kept: those of the micro-batches that a pipeline has in flight.
_BLOCK_MASKS, _TAIL_MASKS = 64, 16


def causal_attention(query: Tensor, key: Tensor, value: Tensor, *, dropout: float, scale: float | None) -> Tensor:
    """Plain causal attention of [B, heads, S, D] on keys and values [B, groups, S, D]."""
    return scaled_dot_product_attention(
        query, key, value, dropout_p=dropout, is_causal=True, scale=scale, enable_gqa=query.shape[1] != key.shape[1]
    )


def pair_attention(
    query: Tensor, key: Tensor, value: Tensor, segments: Tensor, *, dropout: float, scale: float | None
) -> Tensor:
    """Attention within pairs, of a row [1, heads, S, D] on keys and values [1, groups, S, D].

    On a CPU a pair is two calls of torch's scaled_dot_product_attention: shared tokens with the chosen tail, causal;
    and the rejected tail on shared tokens and itself, masked. On CUDA the whole row is one FlexAttention.

    Returns:
        [1, heads, S, D]; padding at the end of the row attends to nothing of a pair, and what it holds has no meaning.
    """
    if query.is_cuda:
        if dropout:
            raise ValueError("attention dropout is not supported by FlexAttention")
        return _flex_attention(query, key, value, segments, scale)
    length = query.shape[2]
    structure = tuple(map(tuple, segments.tolist()))
    used = structure[-1][-1] if structure else 0
    sizes = [end - start for start, *_, end in structure]
    # split, not slices: its gradient is one concatenation, that of a slice a row of zeros each
    parts = zip(*(tensor.split([*sizes, length - used], dim=2) for tensor in (query, key, value)), strict=True)
    attended = []
    for (start, branch, chosen_end, _), mask, (q, k, v) in zip(structure, _tail_masks(structure), parts, strict=False):
        attended += _one_pair(q, k, v, branch - start, chosen_end - branch, mask, dropout=dropout, scale=scale)
    padding, *_ = next(parts)
    return torch.cat([*attended, padding * 0.0], dim=2)


def _one_pair(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    shared: int,
    chosen: int,
    tail_mask: Tensor,
    *,
    dropout: float,
    scale: float | None,
) -> list[Tensor]:
    rejected = len(tail_mask)
    if not rejected:
        return [causal_attention(query, key, value, dropout=dropout, scale=scale)]
    with_chosen = shared + chosen
    first, tail = query.split([with_chosen, rejected], dim=2)
    (key_first, key_tail), (value_first, value_tail) = (
        tensor.split([with_chosen, rejected], dim=2) for tensor in (key, value)
    )
    return [
        causal_attention(first, key_first, value_first, dropout=dropout, scale=scale),
        scaled_dot_product_attention(
            tail,
            torch.cat([key_first[:, :, :shared], key_tail], dim=2),
            torch.cat([value_first[:, :, :shared], value_tail], dim=2),
            attn_mask=tail_mask,
            dropout_p=dropout,
            scale=scale,
            enable_gqa=query.shape[1] != key.shape[1],
        ),
    ]


def _flex_attention(query: Tensor, key: Tensor, value: Tensor, segments: Tensor, scale: float | None) -> Tensor:
    structure = tuple(map(tuple, segments.tolist()))
    return _compiled_flex_attention()(
        query, key, value,
        block_mask=block_mask(structure, query.shape[2], str(query.device)),
        scale=scale, enable_gqa=query.shape[1] != key.shape[1],
    )  # fmt: skip


@lru_cache(maxsize=_TAIL_MASKS)
def _tail_masks(segments: tuple[tuple[int, ...], ...]) -> list[Tensor]:
    """What each rejected tail sees of the shared tokens and itself, [rejected, shared + rejected]; for all layers."""
    return [
        torch.ones(end - chosen_end, branch - start + end - chosen_end, dtype=torch.bool).tril(branch - start)
        for start, branch, chosen_end, end in segments
    ]


@lru_cache(maxsize=1)
def _compiled_flex_attention() -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention)  # without it FlexAttention builds the S x S scores


@lru_cache(maxsize=_BLOCK_MASKS)
def block_mask(segments: tuple[tuple[int, ...], ...], length: int, device: str) -> Any:
    """FlexAttention's mask of a row; one for all layers, and for their recomputation.

    Padding is a pair of its own: a place that sees nothing would have no softmax.
    """
    from torch.nn.attention.flex_attention import create_block_mask

    pair = torch.full((length,), len(segments), dtype=torch.int32)
    part = torch.zeros(length, dtype=torch.int32)  # 0 shared, 1 chosen tail, 2 rejected tail
    for number, (start, branch, chosen_end, end) in enumerate(segments):
        pair[start:end] = number
        part[branch:chosen_end] = 1
        part[chosen_end:end] = 2
    pair, part = pair.to(device), part.to(device)

    def sees(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        not_across = (part[query] != 2) | (part[key] != 1)
        return (query >= key) & (pair[query] == pair[key]) & not_across

    return create_block_mask(sees, None, None, length, length, device=device)
