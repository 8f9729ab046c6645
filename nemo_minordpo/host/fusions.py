"""Transformer Engine's fused kernels where Megatron-Core 0.10 - 0.11 expects Apex or an older Transformer Engine."""

from typing import Any

from nemo_minordpo.errors import require_upstream
from nemo_minordpo.host import StandIn


def install() -> list[StandIn]:
    """For machines with Transformer Engine but no Apex; a kernel runs only if the model's configuration enables it."""
    return [*_rotary_embedding(), *_gradient_accumulation()]


def _rotary_embedding() -> list[StandIn]:
    """`apply_rope_fusion`: Transformer Engine 2 moved the function that Megatron-Core imports."""
    import megatron.core.models.common.embeddings.rope_utils as rope_utils

    if rope_utils.fused_apply_rotary_pos_emb is not None:
        return []
    try:
        from transformer_engine.pytorch.attention.rope import apply_rotary_pos_emb
    except ImportError:
        return []  # Megatron-Core reports it if a model needs the kernel

    def fused(t: Any, freqs: Any, transpose_output_memory: bool = False) -> Any:
        return apply_rotary_pos_emb(t, freqs, tensor_format="sbhd", fused=True)

    module: Any = rope_utils
    module.fused_apply_rotary_pos_emb = fused
    return [StandIn("fused rotary embedding where Megatron-Core imports it from", "Transformer Engine's own")]


def _gradient_accumulation() -> list[StandIn]:
    """`gradient_accumulation_fusion`: matrix products that add weight gradients directly to Megatron's main_grad.

    Transformer Engine's layers do this themselves. Megatron-Core still requires Apex's extension for its own head,
    which is built but never called: core/logprobs.py adds to main_grad instead.
    """
    import megatron.core.tensor_parallel.layers as layers

    require_upstream(layers, "_grad_accum_fusion_available")
    if layers._grad_accum_fusion_available:
        return []
    module: Any = layers
    module._grad_accum_fusion_available = True
    return [StandIn("Apex's gradient accumulation fusion", "Transformer Engine's layers have it")]
