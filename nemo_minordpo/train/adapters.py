"""LoRA adapters in checkpoints: NeMo 2.1 - 2.4 writes them rank by rank; here they are sharded like the weights.

So a run with adapters, too, goes on at any tensor- and pipeline-parallel layout.
"""

from typing import Any

from megatron.core.dist_checkpointing.utils import replace_prefix_for_sharding
from megatron.core.transformer.mlp import apply_swiglu_sharded_factory


def sharded_adapters(model: Any, *, prefix: str) -> dict[str, Any]:
    """Megatron's sharded state of the adapters of a GPT model; keys as in its own state_dict, behind ``prefix``."""
    layers = f"{prefix}decoder.layers."
    first = model.decoder.layers[0].layer_number
    state: dict[str, Any] = {}
    for layer in model.decoder.layers:
        here = f"{layers}{layer.layer_number - first}."
        offsets = ((0, layer.layer_number - 1, model.config.num_layers),)
        for place, module in layer.named_modules():
            for name, adapter in (getattr(module, "adapter_layer", None) or {}).items():
                # joined, not formatted: NeMo's names are members of an Enum
                part = adapter.sharded_state_dict(here + place + ".adapter_layer." + name + ".", offsets)
                if "hto4h" in name:
                    _split_gate_and_up(part, offsets, gated=model.config.gated_linear_unit)
                replace_prefix_for_sharding(part, here, layers)
                state.update(part)
    return state


def _split_gate_and_up(part: dict[str, Any], offsets: tuple[tuple[int, int, int], ...], *, gated: bool) -> None:
    """A rank holds its part of the gate and then its part of the up projection: two pieces, not one."""
    for key in [key for key in part if gated and key.endswith("linear_out.weight")]:
        part[key] = apply_swiglu_sharded_factory(part[key], offsets)
