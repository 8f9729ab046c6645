"""Read LoRA adapters from NeMo-Aligner's own `.nemo`, which has one file per rank.

A single rank has `model_weights.ckpt`, tensor parallelism has `mp_rank_TT/`, and tensor with pipeline parallelism has
`tp_rank_TT_pp_rank_PPP/`. Each file numbers the layers of its pipeline stage from 0.
"""

import re
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor

from nemo_minordpo.convert.nemo_source import rank_files
from nemo_minordpo.errors import UserError

_NAME = re.compile(r"model\.decoder\.layers\.(\d+)\.(.+)")
_RANKS = re.compile(r"mp_rank_(\d+)|tp_rank_(\d+)_pp_rank_(\d+)")
# adapters of row-parallel layers: each rank has only part of the input of `linear_in`
_SPLIT_INPUTS = ("lora_dense_attention_adapter.linear_in", "lora_4htoh_adapter.linear_in")
_GATE_AND_UP = "lora_hto4h_adapter.linear_out"


def read_rank_files(folder: Path, config: dict[str, Any]) -> dict[str, Tensor]:
    """All tensors by their names in a distributed checkpoint (without `model.`), with the layers as first axis.

    Args:
        folder: an unpacked `.nemo`.
        config: its model config.

    Raises:
        UserError: files are damaged, missing, or contain anything but adapters of layers.
    """
    parts: dict[tuple[int, str], dict[int, Tensor]] = {}  # (layer, name) -> tensor-parallel rank -> tensor
    num_layers, stages = config["num_layers"], config.get("pipeline_model_parallel_size") or 1
    for file in rank_files(folder):
        match = _RANKS.fullmatch(file.parent.name)
        tensor_rank, stage = (int(match[1] or match[2]), int(match[3] or 0)) if match else (0, 0)
        for name, tensor in _load(file).items():
            place = _NAME.fullmatch(name)
            if place is None:
                raise UserError(f"{file}: {name} is not an adapter of a layer")
            layer = stage * (num_layers // stages) + int(place[1])
            parts.setdefault((layer, place[2]), {})[tensor_rank] = tensor
    names = sorted({name for _, name in parts})
    ranks = set(range(config.get("tensor_model_parallel_size") or 1))
    for layer in range(num_layers):
        for name in names:
            found = set(parts.get((layer, name), ()))
            if found != ranks:
                raise UserError(
                    f"{folder}: {name} of layer {layer}: files of ranks {sorted(ranks - found)} are missing"
                )
    return {
        f"decoder.layers.{name}": torch.stack([_join(name, parts[layer, name]) for layer in range(num_layers)])
        for name in names
    }


def _load(file: Path) -> dict[str, Tensor]:
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except (UnpicklingError, RuntimeError, EOFError, OSError) as error:
        raise UserError(f"{file}: damaged ({error})") from error


def _join(name: str, parts: dict[int, Tensor]) -> Tensor:
    """Join the parts of the tensor-parallel ranks."""
    tensors = [parts[rank] for rank in sorted(parts)]
    stem = name.removesuffix(".weight")
    if stem.endswith(_SPLIT_INPUTS):
        return torch.cat(tensors, dim=1)
    if stem.endswith(_GATE_AND_UP):  # each rank has its part of gate followed by its part of up
        halves = [tensor.chunk(2) for tensor in tensors]
        return torch.cat([gate for gate, _ in halves] + [up for _, up in halves])
    return torch.cat(tensors)
