"""Attention over packed pairs: a place sees earlier places of its own pair; a rejected tail never sees the chosen one.

S = places in the row; heads and groups (of keys and values) on this tensor-parallel rank; D = head size.
segments: [m, 4], int64 on the CPU: start, branch, chosen_end, end of each pair, as in core/pair_packing.py.
"""

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from nemo_minordpo.core.flex import STRUCTURES, Structure, row_attention

# The kernels torch may choose from: all but cuDNN, its first choice on sm_90, which builds a plan for every new length,
# and lengths change constantly here. Flash runs where there is no mask; the memory-efficient kernel takes masks and
# float32; math, which materialises the scores, is the fallback, e.g. for float64.
_BACKENDS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


def causal_attention(query: Tensor, key: Tensor, value: Tensor, *, scale: float | None) -> Tensor:
    """Plain causal attention: queries [B, heads, S, D], keys and values [B, groups, S, D]."""
    with sdpa_kernel(_BACKENDS):
        return scaled_dot_product_attention(
            query, key, value, is_causal=True, scale=scale, enable_gqa=query.shape[1] != key.shape[1]
        )


def pair_attention(query: Tensor, key: Tensor, value: Tensor, segments: Tensor, *, scale: float | None) -> Tensor:
    """Attention within pairs: queries [1, heads, S, D], keys and values [1, groups, S, D].

    On a CPU each pair takes two calls of torch's flash attention: a causal one over the shared tokens and chosen tail,
    and a masked one from the rejected tail to the shared tokens and itself. On CUDA one FlexAttention call covers the
    whole row.

    Returns:
        [1, heads, S, D]; padding at the end of the row attends to no pair, and its values are meaningless.
    """
    structure = tuple(map(tuple, segments.tolist()))
    if query.is_cuda:
        return row_attention(query, key, value, structure, scale)
    return _PairAttention.apply(query, key, value, structure, scale)


class KeyValueCache:
    """Keys and values of n sequences during generation, for every layer of this pipeline stage.

    The first row holds the prompts, one after another. After each :meth:`advance`, the row holds the next new token of
    every sequence, in the same order.
    """

    def __init__(self, segments: Tensor, *, max_new_tokens: int) -> None:
        """
        Args:
            segments: [n, 4], of the row of prompts; prompts have no tails.
            max_new_tokens: maximum number of rows after the prompts.
        """
        self._segments = segments
        self._lengths = segments[:, 3] - segments[:, 0]  # tokens that each sequence's next token sees
        self._capacity = int(self._lengths.max()) + max_new_tokens
        self._layers: dict[int, tuple[Tensor, Tensor]] = {}
        self._new_tokens = 0

    def advance(self) -> None:
        """Move on to the next token of every sequence."""
        self._new_tokens += 1

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, *, scale: float | None) -> Tensor:
        """Attention for the current row; caches its keys and values.

        Args:
            layer: layer number, from 1.
            query: [1, heads, S, D]; S may exceed n, and the extra places are padding.
            key, value: [1, groups, S, D].
            scale: factor for the scores; None = D ** -0.5.

        Returns:
            [1, heads, S, D].
        """
        if not self._new_tokens:
            self._layers[layer] = self._spread(key), self._spread(value)
            return pair_attention(query, key, value, self._segments, scale=scale)
        count = len(self._lengths)
        own = self._lengths.to(query.device) + self._new_tokens - 1
        longest = int(self._lengths.max()) + self._new_tokens
        rows, seen = torch.arange(count, device=query.device), torch.arange(longest, device=query.device)
        for cached, new in zip(self._layers[layer], (key, value), strict=True):
            cached[rows, :, own] = new[0, :, :count].transpose(0, 1)
        keys, values = (cached[:, :, :longest] for cached in self._layers[layer])
        # The heads of a group take the place of queries: [n, groups, heads / groups, D]. A kernel then reads keys and
        # values once per group, and the memory-efficient kernel, which lacks groups in older torch, can be used.
        heads = query[0, :, :count].transpose(0, 1).unflatten(1, (key.shape[1], -1))
        with sdpa_kernel(_BACKENDS):
            attended = scaled_dot_product_attention(
                heads, keys, values, attn_mask=(seen <= own[:, None])[:, None, None], scale=scale
            )
        result = torch.zeros_like(query)
        result[0, :, :count] = attended.flatten(1, 2).transpose(0, 1)
        return result

    def _spread(self, row: Tensor) -> Tensor:
        """[1, groups, S, D] -> [n, groups, capacity, D]."""
        _, groups, _, size = row.shape
        spread = row.new_zeros(len(self._lengths), groups, self._capacity, size)
        for number, (start, *_, end) in enumerate(self._segments.tolist()):
            spread[number, :, : end - start] = row[0, :, start:end]
        return spread


class _PairAttention(torch.autograd.Function):
    """One flash attention call at a time, each reading from and writing to its own places in the row.

    Composed of slices and concatenations, the same takes an eighth of a small model's step.
    """

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, structure: Structure, scale: float | None
    ) -> Tensor:
        attended = torch.empty_like(query)
        _padding(attended, structure).zero_()
        normalisers = []
        for queries, seen, mask in _calls(structure, query.dtype):
            result, normaliser = _FLASH(
                _at(query, [queries]), _at(key, seen), _at(value, seen), 0.0, mask is None, attn_mask=mask, scale=scale
            )
            _at(attended, [queries]).copy_(result)
            normalisers.append(normaliser)
        ctx.save_for_backward(query, key, value, attended, *normalisers)
        ctx.structure, ctx.scale = structure, scale
        return attended

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:  # type: ignore[override]
        *saved, normalisers = *ctx.saved_tensors[:4], ctx.saved_tensors[4:]
        dtype = grad.dtype
        # torch's backward pass in bfloat16 takes three times as long as in float32, even with bfloat16 instructions
        wide = torch.promote_types(dtype, torch.float32)
        grad, query, key, value, attended = (tensor.to(wide) for tensor in (grad, *saved))
        grads = [torch.empty_like(tensor) for tensor in (query, key, value)]
        for tensor in grads:
            _padding(tensor, ctx.structure).zero_()
        calls = _calls(ctx.structure, wide)
        for (queries, seen, mask), normaliser in zip(calls, normalisers, strict=True):
            of_query, *of_seen = _FLASH_BACKWARD(
                _at(grad, [queries]), _at(query, [queries]), _at(key, seen), _at(value, seen),
                _at(attended, [queries]), normaliser, 0.0, mask is None, attn_mask=mask, scale=ctx.scale,
            )  # fmt: skip
            _at(grads[0], [queries]).copy_(of_query)
            for whole, part in zip(grads[1:], of_seen, strict=True):
                # a call's own keys and values come last; the others were written by the call before
                *before, own = part.split([places.stop - places.start for places in seen], dim=2)
                _at(whole, [seen[-1]]).copy_(own)
                for places, more in zip(seen, before, strict=False):
                    _at(whole, [places]).add_(more)
        return *(tensor.to(dtype) for tensor in grads), None, None


_FLASH = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_FLASH_BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


@lru_cache(maxsize=STRUCTURES)
def _calls(structure: Structure, dtype: torch.dtype) -> list[tuple[slice, list[slice], Tensor | None]]:
    """For each call: the query places, the places they see, and the mask to add to the scores (None = causal)."""
    calls: list[tuple[slice, list[slice], Tensor | None]] = []
    for start, branch, chosen_end, end in structure:
        calls.append((slice(start, chosen_end), [slice(start, chosen_end)], None))
        if end > chosen_end:
            shared, rejected = branch - start, end - chosen_end
            mask = torch.full((rejected, shared + rejected), -torch.inf, dtype=dtype).triu(shared + 1)
            calls.append((slice(chosen_end, end), [slice(start, branch), slice(chosen_end, end)], mask))
    return calls


def _at(row: Tensor, places: list[slice]) -> Tensor:
    """[1, heads, places, D]: a view for one slice, a copy for several."""
    parts = [row[:, :, part] for part in places]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)


def _padding(row: Tensor, structure: Structure) -> Tensor:
    return row[:, :, structure[-1][-1] if structure else 0 :]
