"""LoRA adapters in checkpoints: NeMo 2.1 - 2.4 writes one file per rank; here they are sharded like the weights.

So a run with adapters can resume, or start from another run's adapters, at any tensor- and pipeline-parallel layout.
"""

from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.core import CheckpointingException
from megatron.core.dist_checkpointing.utils import replace_prefix_for_sharding
from megatron.core.transformer.mlp import apply_swiglu_sharded_factory
from nemo.utils.model_utils import inject_model_parallel_rank
from torch.distributed.checkpoint.api import CheckpointException

from nemo_minordpo.config.lora import ADAPTER
from nemo_minordpo.errors import UserError
from nemo_minordpo.file_names import NEMO_RANK_WEIGHTS, NEMO_WEIGHTS
from nemo_minordpo.train.model.nemo_file import unpacked

_PREFIX = "model."
# errors that torch, Megatron and the system raise for files that are damaged or contain other tensors
_FAULTS = (OSError, EOFError, KeyError, RuntimeError, UnpicklingError, CheckpointException, CheckpointingException)


def load_adapters(model: Any, path: Path) -> None:
    """Replace a model's new adapters by those of a `.nemo`; collective.

    Args:
        model: NeMo's, with adapters of the same LoRA rank on the same layers (starting_adapters.py).
        path: the `.nemo`, a file or a folder.

    Raises:
        UserError: the files are damaged, or the adapters are for another model.
    """
    (module,) = model.get_model_module_list()
    try:
        with unpacked(path) as folder:
            stored = (
                _distributed(module, folder / NEMO_WEIGHTS) if (folder / NEMO_WEIGHTS).is_dir() else _of_rank(folder)
            )
        other = sorted(stored.keys() ^ {name for name, _ in module.named_parameters() if ADAPTER in name})
        if other:
            raise UserError(f"{path}: its adapters do not match its model config: {other[0]} ({len(other)} in all)")
        module.load_state_dict(stored, strict=False)
    except _FAULTS as error:
        raise UserError(f"{path}: its adapters cannot be loaded ({type(error).__name__}: {error})") from error


def _distributed(module: Any, folder: Path) -> dict[str, Any]:
    """The adapters by their names in the module, whatever layout they were written at."""
    # only the weights: FP8's scales are computed again
    state = {key: value for key, value in sharded_adapters(module, prefix=_PREFIX).items() if key.endswith(".weight")}
    loaded: Any = dist_checkpointing.load(state, str(folder))
    return {key.removeprefix(_PREFIX): value for key, value in loaded.items()}


def _of_rank(folder: Path) -> dict[str, Any]:
    """The adapters in NeMo's own file for this rank, at the current layout."""
    file = inject_model_parallel_rank(str(folder / NEMO_RANK_WEIGHTS))
    loaded = torch.load(file, map_location="cpu", weights_only=True)
    return {key.removeprefix(_PREFIX): value for key, value in loaded.items()}


def sharded_adapters(model: Any, *, prefix: str) -> dict[str, Any]:
    """Megatron's sharded state of a GPT model's adapters; keys as in its state_dict, prefixed by ``prefix``."""
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
    """Shard the gate and the up projection separately: each rank has a part of one, followed by a part of the other."""
    for key in [key for key in part if gated and key.endswith("linear_out.weight")]:
        part[key] = apply_swiglu_sharded_factory(part[key], offsets)
