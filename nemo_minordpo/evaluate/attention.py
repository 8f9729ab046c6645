"""Attention for generation: as transformers' "sdpa", but keys and values shared by query heads are not repeated."""

from typing import Any

from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

GROUPED = "minordpo_grouped"


def grouped_attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor, scaling: float, **options: Any
) -> tuple[Tensor, None]:
    """Attention of one new token per answer; of several tokens, transformers' own.

    transformers repeats the keys and values of a group for each of its query heads. For one token, those heads can
    instead take the place of the tokens: query [B, heads, 1, D] becomes [B, key-value heads, group, D].

    Args:
        module: the model's attention layer.
        query: [B, heads, new tokens, D].
        key: [B, key-value heads, C, D]; value likewise.
        value: see `key`.
        attention_mask: to add, [B or 1, 1, new tokens, C].
        scaling: factor of the products.
        options: passed on to transformers.

    Returns:
        [B, new tokens, heads, D], and no attention weights.
    """
    batch, heads, new, size = query.shape
    if new > 1 or heads == key.shape[1]:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **options)
    groups = query.view(batch, key.shape[1], -1, size)
    attended = scaled_dot_product_attention(groups, key, value, attn_mask=attention_mask, scale=scaling)
    return attended.reshape(batch, 1, heads, -1), None


ALL_ATTENTION_FUNCTIONS[GROUPED] = grouped_attention
