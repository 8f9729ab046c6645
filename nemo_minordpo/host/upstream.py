"""Replacements inside NeMo and Megatron-Core for whatever this machine lacks."""

import importlib
import sys
import types
from typing import Any

from nemo_minordpo.errors import require_upstream
from nemo_minordpo.host import StandIn, distributed_optimizer, fusions, newer, random_states, writers


def install(*, cuda: bool, apex: bool, transformer_engine: bool) -> list[StandIn]:
    """Install the replacements. Order matters: Megatron-Core before NeMo."""
    active = []
    if not cuda:
        active.append(random_states.install())
        active.append(_fused_on_cpu())
    active.extend(newer.install())
    writers.install()
    if not transformer_engine:
        active.append(_adapters_without_transformer_engine(cuda=cuda))
        active.append(_no_bert_catalogue())
    if not apex:
        active.append(_strategy_without_apex())
        if transformer_engine:
            active.extend(fusions.install())
    if not transformer_engine:
        active.append(_final_norm_without_transformer_engine())
    active.extend(distributed_optimizer.install())
    return active


def _fused_on_cpu() -> StandIn:
    """Fused rotary embedding and SwiGLU, where Megatron-Core 0.10 - 0.12 calls CUDA kernels or many small ones.

    NeMo's LoRA imports the same functions under its own names; `_adapters_without_transformer_engine` replaces those.
    """
    import megatron.core.transformer.attention as attention
    import megatron.core.transformer.mlp as mlp

    require_upstream(attention, "apply_rotary_pos_emb")
    require_upstream(mlp, "bias_swiglu_impl")
    _use_fused(attention, mlp)
    return StandIn("fused CUDA kernels of rotary embedding, SwiGLU and RMSNorm", "this project's fused CPU versions")


def _use_fused(*modules: Any) -> None:
    from nemo_minordpo.host.fused import rotate, swiglu

    for module in modules:
        original = getattr(module, "apply_rotary_pos_emb", None)

        def apply_rotary(t: Any, freqs: Any, config: Any, *more: Any, original: Any = original, **named: Any) -> Any:
            if more or any(value is not None for value in named.values()) or config.rotary_interleaved:
                return original(t, freqs, config, *more, **named)
            return rotate(t, freqs) if freqs.shape[-1] == t.shape[-1] else original(t, freqs, config)

        if original is not None:
            module.apply_rotary_pos_emb = apply_rotary
        if hasattr(module, "bias_swiglu_impl"):
            module.bias_swiglu_impl = lambda x, bias, *unused: swiglu(x if bias is None else x + bias)


def _adapters_without_transformer_engine(*, cuda: bool) -> StandIn:
    """NeMo's LoRA (2.1 - 2.4) imports one Transformer Engine function, but works without it if it is None."""
    name = "megatron.core.extensions.transformer_engine"
    stand_in: Any = types.ModuleType(name)
    stand_in.SplitAlongDim = None
    sys.modules[name] = stand_in
    try:
        mixins = importlib.import_module("nemo.collections.nlp.modules.common.megatron.adapters.mcore_mixins")
    finally:
        del sys.modules[name]
    if not cuda:
        _use_fused(mixins)
    return StandIn("Transformer Engine's split of queries, keys and values (LoRA)", "torch.split")


def _no_bert_catalogue() -> StandIn:
    """NeMo imports a layer spec that needs Transformer Engine when it lists pretrained BERT models."""
    import nemo.collections.nlp.models.nlp_model as nlp_model

    require_upstream(nlp_model, "get_megatron_pretrained_bert_models")
    module: Any = nlp_model
    module.get_megatron_pretrained_bert_models = list
    return StandIn("NeMo's catalogue of BERT models (needs Transformer Engine)", "an empty list")


def local_norm() -> Any:
    """The norm for Megatron-Core's local layers."""
    from nemo_minordpo.host.norms import TorchNorm  # imports Megatron-Core

    return TorchNorm


def _final_norm_without_transformer_engine() -> StandIn:
    """The norm after the last layer (Megatron-Core 0.10 - 0.12); the layer spec covers the others."""
    import megatron.core.transformer.transformer_block as transformer_block

    require_upstream(transformer_block, "LayerNormImpl")
    block: Any = transformer_block
    block.LayerNormImpl = local_norm()
    return StandIn(
        "Transformer Engine",
        "Megatron-Core's local layer spec, attention through torch's scaled_dot_product_attention",
    )


def _strategy_without_apex() -> StandIn:
    """NeMo's strategy requires Apex even if it uses none of it (2.1 - 2.4)."""
    import nemo.collections.nlp.parts.nlp_overrides as overrides
    from nemo.core.optim.mcore_optim import McoreDistributedOptimizer

    require_upstream(overrides, "HAVE_APEX")
    module: Any = overrides
    module.HAVE_APEX = True
    module.HAVE_AMP_C = False
    module.McoreDistributedOptimizer = McoreDistributedOptimizer
    # Checkpointing does isinstance checks against it; without Apex, no optimizer is one.
    module.MegatronDistributedFusedAdam = type("MegatronDistributedFusedAdam", (), {})
    return StandIn("Apex in NeMo's strategy", "the strategy takes torch's and Megatron-Core's optimizers")
