"""Stand-ins for the parts of NVIDIA Apex that NeMo 2.1 - 2.4 imports for GPT models: Megatron-Core's equivalents."""

import importlib
import importlib.machinery
import sys
import types
from typing import Any

import torch

from nemo_minordpo.host import StandIn

# Modules that check for Apex once, when imported.
_ASK_FOR_APEX = (
    "transformers.utils.import_utils",
    "megatron.core.optimizer",
    "megatron.core.models.gpt.gpt_layer_specs",
    "megatron.core.models.T5.t5_spec",
    "megatron.core.models.retro",
)


def install() -> StandIn:
    """Register stand-in modules for Apex.

    transformers and Megatron-Core change their behaviour if Apex can be imported. They are imported first, so that they
    do not see the stand-ins.
    """
    for name in _ASK_FOR_APEX:
        importlib.import_module(name)
    from megatron.core.enums import ModelType
    from megatron.core.tensor_parallel import set_defaults_if_not_set_tensor_model_parallel_attributes
    from megatron.core.transformer.enums import AttnMaskType, AttnType
    from megatron.core.utils import (
        local_multi_tensor_applier,
        local_multi_tensor_l2_norm,
        local_multi_tensor_scale,
    )

    class FusedLayerNorm(torch.nn.LayerNorm):
        """Only used in isinstance checks and as a base class of modules that are never built."""

    class MixedFusedRMSNorm(torch.nn.RMSNorm):
        """Same as FusedLayerNorm."""

    enums = {"AttnMaskType": AttnMaskType, "AttnType": AttnType, "ModelType": ModelType}
    for name, contents in {
        "apex": {},
        "apex.normalization": {"MixedFusedRMSNorm": MixedFusedRMSNorm},
        "apex.normalization.fused_layer_norm": {
            "FusedLayerNorm": FusedLayerNorm,
            "MixedFusedLayerNorm": FusedLayerNorm,
        },
        "apex.transformer": {},
        "apex.transformer.enums": enums,
        "apex.transformer.layers": {},
        "apex.transformer.layers.layer_norm": {
            "FastLayerNorm": FusedLayerNorm,
            "MixedFusedLayerNorm": FusedLayerNorm,
        },
        "apex.transformer.pipeline_parallel": {},
        "apex.transformer.pipeline_parallel.schedules": {},
        "apex.transformer.pipeline_parallel.schedules.common": {
            "listify_model": lambda model: model if isinstance(model, list) else [model]
        },
        "apex.transformer.tensor_parallel": {},
        "apex.transformer.tensor_parallel.layers": {
            "set_defaults_if_not_set_tensor_model_parallel_attributes": (
                set_defaults_if_not_set_tensor_model_parallel_attributes
            )
        },
        "apex.multi_tensor_apply": {"multi_tensor_applier": local_multi_tensor_applier},
        "amp_C": {
            "multi_tensor_l2norm": local_multi_tensor_l2_norm,
            "multi_tensor_scale": local_multi_tensor_scale,
        },
    }.items():
        _register(name, contents)
    return StandIn("NVIDIA Apex", "Megatron-Core's own gradient norm and scaling; no distributed_fused_adam")


def _register(name: str, contents: dict[str, Any]) -> None:
    module = types.ModuleType(name, doc="Stand-in for NVIDIA Apex by nemo_minordpo.host.")
    module.__dict__.update(contents)
    module.__path__ = []
    module.__spec__ = importlib.machinery.ModuleSpec(name, loader=None)
    sys.modules[name] = module
    parent, _, child = name.rpartition(".")
    if parent:
        setattr(sys.modules[parent], child, module)
