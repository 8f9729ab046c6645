"""The layers of a model that Megatron-Bridge builds: Megatron-Core's own, with attention over packed pairs."""

from typing import Any

from megatron.bridge.models.gpt_provider import default_layer_spec, local_layer_spec, transformer_engine_layer_spec
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules, get_num_layers_to_build

from nemo_minordpo import host
from nemo_minordpo.errors import UserError
from nemo_minordpo.host.norms import TorchNorm
from nemo_minordpo.layers.pair_attention import PairAttention

# Attributes of a provider and the values that attention over packed pairs supports, besides None. Anything else changes
# which tokens attend to which, or how: the model would silently be another one.
_PLAIN: dict[str, tuple[Any, ...]] = {
    "position_embedding_type": ("rope",),
    "normalization": ("RMSNorm",),
    "multi_latent_attention": (False,),
    "softmax_type": ("vanilla",),
    "attn_logit_softcapping": (),
    "rotary_interleaved": (False,),
    "no_rope_freq": (),
    "qk_l2_norm": (False,),
    "attention_output_gate": (False,),
    "experimental_attention_variant": (),
    "heterogeneous_block_specs": (False,),
    "mtp_num_layers": (0,),
    "moe_layer_freq": (1,),
    "moe_shared_expert_intermediate_size": (0,),
}
# kernels of mixtures that need CUDA
_MIXTURE_KERNELS = ("moe_grouped_gemm", "moe_permute_fusion", "moe_router_fusion")


def pack_pairs(provider: Any) -> None:
    """Make a provider build its layers with attention over packed pairs.

    Args:
        provider: Megatron-Bridge's, before `finalize`.

    Raises:
        UserError: the model has layers or an attention that cannot take packed pairs.
    """
    kind = type(provider).__name__.removesuffix("Provider")
    spec = provider.transformer_layer_spec
    if spec is not default_layer_spec:
        name = getattr(getattr(spec, "func", spec), "__name__", type(spec).__name__)
        raise UserError(
            f"host=bridge: Megatron-Bridge builds this model ({kind}) from layers of its own ({name}), which were not "
            "written for packed pairs"
        )
    wrong = [
        f"{name}={value!r}"
        for name, plain in _PLAIN.items()
        if (value := getattr(provider, name, None)) is not None and value not in plain
    ]
    if wrong:
        raise UserError(
            f"host=bridge: Megatron-Bridge builds this model as {kind} with {', '.join(wrong)}, which attention over "
            "packed pairs does not support"
        )
    provider.window_size = None  # refusals.py refuses a window that could cut a pair
    provider.transformer_layer_spec = _with_transformer_engine if host.has_transformer_engine() else _local
    if not host.has_cuda():
        for name in _MIXTURE_KERNELS:
            setattr(provider, name, False)
        # the one for all-to-all reads the numbers of tokens from CUDA tensors
        provider.moe_token_dispatcher_type = "allgather"


def _with_transformer_engine(config: Any, vp_stage: int | None = None) -> TransformerBlockSubmodules:
    from megatron.core.extensions.transformer_engine import TENorm

    return _stage(config, transformer_engine_layer_spec(config), vp_stage, norm=TENorm)


def _local(config: Any, vp_stage: int | None = None) -> TransformerBlockSubmodules:
    """Megatron-Core's layers without Transformer Engine, with norms that work under sequence parallelism."""
    layer = local_layer_spec(config)
    attention = layer.submodules.self_attention.submodules
    norms = [(layer.submodules, "input_layernorm"), (layer.submodules, "pre_mlp_layernorm")]
    if config.qk_layernorm:
        norms += [(attention, "q_layernorm"), (attention, "k_layernorm")]
    for part, name in norms:
        setattr(part, name, TorchNorm)
    return _stage(config, layer, vp_stage, norm=TorchNorm)


def _stage(config: Any, layer: ModuleSpec, vp_stage: int | None, *, norm: Any) -> TransformerBlockSubmodules:
    layer.submodules.self_attention.submodules.core_attention = PairAttention
    layers = get_num_layers_to_build(config, vp_stage)
    return TransformerBlockSubmodules(layer_specs=[layer] * layers, layer_norm=norm)
