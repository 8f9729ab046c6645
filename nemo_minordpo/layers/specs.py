"""Make NeMo build its own layer specs with attention over packed pairs and with query and key norms.

NeMo gets a layer spec by name from `get_specs` (2.1 - 2.4). This module replaces that function once, on every machine.
"""

import inspect
from typing import Any

from megatron.core.models.gpt import gpt_layer_specs
from nemo.collections.nlp.models.language_modeling import megatron_gpt_model
from nemo.collections.nlp.modules.common.megatron.adapters import mcore_mixins

from nemo_minordpo.errors import UserError, require_upstream
from nemo_minordpo.layers.pair_attention import PairAttention

# Prefix of a spec's name that selects attention over packed pairs. The model adds it; checkpoints never contain it.
PACKED_PAIRS = "packed pairs in "
_GPT = ("", "te_gpt")  # NeMo's names for the spec that also exists without Transformer Engine


def install(*, local_norm: Any | None) -> None:
    """Replace NeMo's choice of layers.

    Args:
        local_norm: builds the norms of Megatron-Core's local layers, for machines without Transformer Engine. There,
            NeMo's function would fail: it builds every spec before choosing one, and most need Transformer Engine.
            None = use Transformer Engine's layers.
    """
    require_upstream(megatron_gpt_model, "get_specs")
    nemo: Any = megatron_gpt_model
    original = nemo.get_specs

    def get_specs(spec_name: str, transformer_config: Any = None, *more: Any, **named: Any) -> Any:
        name = spec_name.removeprefix(PACKED_PAIRS)
        if local_norm is None:
            spec, norm = original(name, transformer_config, *more, **named), None
        else:
            spec, norm = _local_spec(name, transformer_config, local_norm), local_norm
        attention = spec.submodules.self_attention.submodules
        if transformer_config is not None and transformer_config.qk_layernorm:
            attention.q_layernorm = attention.k_layernorm = norm or _norm_of_transformer_engine()
        # without Transformer Engine also in NeMo's own model: Megatron-Core's attention would build S x S scores
        if spec_name.startswith(PACKED_PAIRS) or local_norm is not None:
            attention.core_attention = PairAttention
        return spec

    nemo.get_specs = get_specs
    _norms_with_adapters()


def _local_spec(name: str, transformer_config: Any, norm: Any) -> Any:
    if name not in _GPT:
        raise UserError(f"model.name={name!r}: this layer spec needs Transformer Engine")
    if transformer_config.num_moe_experts is not None:
        raise UserError("model.num_moe_experts: mixture-of-experts layers need Transformer Engine")
    spec = gpt_layer_specs.get_gpt_layer_local_spec()
    spec.submodules.input_layernorm = spec.submodules.pre_mlp_layernorm = norm
    return spec


def _norm_of_transformer_engine() -> Any:
    require_upstream(gpt_layer_specs, "TENorm")
    return gpt_layer_specs.TENorm


def _norms_with_adapters() -> None:
    """Apply the query and key norms in attention with adapters, where NeMo skips them (2.1 - 2.4).

    The model would load and generate, but silently be a different model.
    """
    require_upstream(mcore_mixins.MCoreSelfAttentionMixin, "get_query_key_value_tensors")
    attention: Any = mcore_mixins.MCoreSelfAttentionMixin
    original = attention.get_query_key_value_tensors
    if "q_layernorm" in inspect.getsource(original):
        return

    def get_query_key_value_tensors(self: Any, hidden_states: Any, key_value_states: Any = None) -> Any:
        query, key, value = original(self, hidden_states, key_value_states)
        if self.config.qk_layernorm:
            query, key = self.q_layernorm(query), self.k_layernorm(key)
        return query, key, value

    attention.get_query_key_value_tensors = get_query_key_value_tensors
