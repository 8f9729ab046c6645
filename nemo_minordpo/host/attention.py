"""Attention of packed pairs in Megatron-Core's layers, and its local layer spec where there is no Transformer Engine.

S = places of a row, B = batch, heads and groups (of keys and values) of this tensor-parallel rank, D = head size.
"""

from typing import Any

import torch
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from nemo_minordpo.core.attention import KeyValueCache, causal_attention, pair_attention
from nemo_minordpo.errors import UserError
from nemo_minordpo.host.fused import RMSNorm


def local_layer_spec(transformer_config: TransformerConfig) -> Any:
    """Megatron-Core's local layer spec with :class:`PairAttention` and :class:`TorchNorm` inside.

    Raises:
        ValueError: the model needs layers that only Transformer Engine's spec has.
    """
    if transformer_config.num_moe_experts is not None:
        raise UserError("model.num_moe_experts: mixture-of-experts layers need Transformer Engine")
    spec = get_gpt_layer_local_spec()
    spec.submodules.input_layernorm = TorchNorm
    spec.submodules.pre_mlp_layernorm = TorchNorm
    if transformer_config.qk_layernorm:
        spec = with_query_key_norms(spec, TorchNorm)
    return with_pair_attention(spec)


def with_query_key_norms(spec: Any, norm: Any) -> Any:
    """A layer spec, local or Transformer Engine's, that normalises the queries and keys of each head with `norm`."""
    attention = spec.submodules.self_attention.submodules
    attention.q_layernorm = attention.k_layernorm = norm
    return spec


def with_pair_attention(spec: Any) -> Any:
    """A layer spec, local or Transformer Engine's, with :class:`PairAttention` as its core attention."""
    spec.submodules.self_attention.submodules.core_attention = PairAttention
    return spec


class PairAttention(MegatronModule):
    """Core attention of self-attention layers, in the place of Megatron-Core's or Transformer Engine's (0.10 - 0.12).

    Takes the structure of a row of pairs where Megatron passes a mask. Without one it is plain causal attention, and
    does not build the S x S scores that Megatron-Core's own would.
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
        """As Megatron-Core calls it."""
        super().__init__(config=config)
        if config.context_parallel_size != 1 or getattr(config, "window_size", None) is not None:
            raise UserError("context parallelism and sliding windows are not supported by the attention of pairs")
        if attn_mask_type != AttnMaskType.causal:
            raise UserError(f"causal attention only, not {attn_mask_type}")
        if config.attention_dropout if attention_dropout is None else attention_dropout:
            raise UserError("attention dropout is not supported by the attention of pairs")
        self.softmax_scale = softmax_scale
        self.layer_number = layer_number

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | KeyValueCache | None, **unused: Any
    ) -> Tensor:
        """Attend.

        Args:
            query: [S, B, heads, D].
            key, value: [S, B, groups, D].
            attention_mask: [m, 4], the segments of a row of pairs (core/pair_packing.py), with B = 1; None: causal;
                or what sequences that are being written have seen so far.

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


class TorchNorm:
    """torch's LayerNorm or our RMSNorm, as Megatron-Core's WrappedTorchNorm (0.10 - 0.12), also for split sequences.

    Megatron refuses torch's norms under sequence parallelism because they do not mark their weights as replicated
    over parts of the sequence. Marked, their gradients are summed over the ranks like those of the fused norms.
    """

    def __new__(cls, config: TransformerConfig, hidden_size: int, eps: float = 1e-5, **unused: Any) -> torch.nn.Module:
        """As Megatron-Core calls it."""
        if config.layernorm_zero_centered_gamma:
            raise UserError("model.layernorm_zero_centered_gamma needs Transformer Engine")
        norms: dict[str, Any] = {"LayerNorm": torch.nn.LayerNorm, "RMSNorm": RMSNorm}
        kind: Any = config.normalization  # Megatron annotates it as a bool
        norm = norms[kind](hidden_size, eps=eps)
        for parameter in norm.parameters():
            parameter.sequence_parallel = config.sequence_parallel
        return norm
