"""Causal attention without the S x S score matrix, for Megatron-Core's local layer spec.

Megatron's own DotProductAttention builds [B, heads, S, S] in memory; torch's scaled_dot_product_attention does not.
Sizes: S = sequence, B = batch, heads and groups (of keys and values) of this tensor-parallel rank, D = head size.
"""

from typing import Any

from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention


def local_layer_spec(transformer_config: TransformerConfig) -> Any:
    """Megatron-Core's local layer spec with :class:`CausalAttention` inside.

    Raises:
        ValueError: the model needs layers that only Transformer Engine's spec has.
    """
    if transformer_config.num_moe_experts is not None:
        raise ValueError("model.num_moe_experts: mixture-of-experts layers need Transformer Engine")
    spec = get_gpt_layer_local_spec()
    spec.submodules.self_attention.submodules.core_attention = CausalAttention
    return spec


class CausalAttention(MegatronModule):
    """Core attention of self-attention layers; takes the place of Megatron-Core's DotProductAttention (0.10 - 0.12)."""

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
        """As Megatron-Core calls it; `layer_number` matters only to fp16, which has no local spec here."""
        super().__init__(config=config)
        if config.context_parallel_size != 1 or getattr(config, "window_size", None) is not None:
            raise ValueError("context parallelism and sliding windows need Transformer Engine's attention")
        if attn_mask_type != AttnMaskType.causal:
            raise ValueError(f"causal attention only, not {attn_mask_type}")
        self.dropout = config.attention_dropout if attention_dropout is None else attention_dropout
        self.softmax_scale = softmax_scale

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **unused: Any
    ) -> Tensor:
        """Attend to all places up to one's own; padding stands at the end, where nothing looks at it.

        Args:
            query: [S, B, heads, D].
            key, value: [S, B, groups, D].
            attention_mask: ignored: the mask is the causal one.

        Returns:
            [S, B, heads * D].
        """
        attended = scaled_dot_product_attention(
            query.permute(1, 2, 0, 3),
            key.permute(1, 2, 0, 3),
            value.permute(1, 2, 0, 3),
            dropout_p=self.dropout if self.training else 0.0,
            is_causal=True,
            scale=self.softmax_scale,
            enable_gqa=query.shape[2] != key.shape[2],
        )
        return attended.permute(2, 0, 1, 3).flatten(start_dim=2)
