"""Attention over packed pairs as the core attention of Megatron-Core's layers (0.10 - 0.12).

S = places in a row; B = batch; heads and groups (of keys and values) on this tensor-parallel rank; D = head size.
"""

from typing import Any

from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from nemo_minordpo.core.attention import KeyValueCache, causal_attention, pair_attention
from nemo_minordpo.errors import UserError


class PairAttention(MegatronModule):
    """Core attention for self-attention layers, replacing Megatron-Core's or Transformer Engine's (0.10 - 0.12).

    Takes the structure of a row of pairs in place of Megatron's mask. Without it, this is plain causal attention, which
    unlike Megatron-Core's does not build S x S scores.
    """

    def __init__(
        self,
        config: TransformerConfig,
        layer_number: int,
        attn_mask_type: AttnMaskType,
        attention_type: str,
        attention_dropout: float | None = None,
        softmax_scale: float | None = None,
        **unused: Any,
    ) -> None:
        """Signature as Megatron-Core calls it."""
        super().__init__(config=config)
        if config.context_parallel_size != 1 or getattr(config, "window_size", None) is not None:
            raise UserError("pair attention does not support context parallelism or sliding windows")
        if attn_mask_type != AttnMaskType.causal:
            raise UserError(f"pair attention supports causal masks only, not {attn_mask_type}")
        if config.attention_dropout if attention_dropout is None else attention_dropout:
            raise UserError("pair attention does not support attention dropout")
        self.softmax_scale = softmax_scale
        self.layer_number = layer_number

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | KeyValueCache | None, **unused: Any
    ) -> Tensor:
        """Attend.

        Args:
            query: [S, B, heads, D].
            key, value: [S, B, groups, D].
            attention_mask: [m, 4], the segments of a row of pairs (core/pair_packing.py), with B = 1; or the key-value
                cache of the sequences being generated; None = plain causal attention.

        Returns:
            [S, B, heads * D].
        """
        query, key, value = (tensor.permute(1, 2, 0, 3) for tensor in (query, key, value))
        if attention_mask is None:
            attended = causal_attention(query, key, value, scale=self.softmax_scale)
        elif isinstance(attention_mask, KeyValueCache):
            attended = attention_mask.attend(self.layer_number, query, key, value, scale=self.softmax_scale)
        else:
            attended = pair_attention(query, key, value, attention_mask, scale=self.softmax_scale)
        return attended.permute(2, 0, 1, 3).flatten(start_dim=2)
