"""Sets up Megatron-Bridge's model and Megatron-Core's optimizer, and runs them.

Imports Megatron, so call `host.prepare("bridge")` before importing this module.
"""

import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from megatron.bridge import AutoBridge
from megatron.core import dist_checkpointing, parallel_state, tensor_parallel
from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer
from omegaconf import DictConfig
from safetensors.torch import load_file, save_file

from nemo_minordpo import host
from nemo_minordpo.config import TrainConfig
from nemo_minordpo.errors import UserError
from nemo_minordpo.train.hosts.bridge.model import BridgeModel, build_model

# by our names of optimizers: Megatron-Core's, and whether weight decay is apart from the gradient
_OPTIMIZERS = {"adam": ("adam", False), "adamw": ("adam", True), "sgd": ("sgd", True),
               "mcore_distributed_optim": ("adam", True)}  # fmt: skip
_PREFIX = "model."  # of weights in checkpoints, as NeMo writes them: convert/ reads both hosts'
_ADAPTER = ".adapter."  # in the names of Megatron-Bridge's adapters
# readable at any layout
_SHARDING = {"distrib_optim_sharding_type": "fully_reshardable", "chained_optim_avoid_prefix": True}


class BridgeHost:
    """The :class:`~nemo_minordpo.train.hosts.protocol.Host` of Megatron-Bridge; see :func:`build`."""

    def __init__(self, model: BridgeModel, optimizer: Any, auto: AutoBridge) -> None:
        self.model = model
        self._optimizer = optimizer
        self._auto = auto

    def begin_step(self, *, rate: float, seed: int) -> None:
        tensor_parallel.model_parallel_cuda_manual_seed(seed)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        for module in self.model.model:
            module.zero_grad_buffer()
        self._optimizer.zero_grad()

    def reduce_and_clip(self, *, max_norm: float) -> float | None:
        return None  # the schedule reduces, and the optimizer clips by the limit that it was made with

    def update_weights(self) -> float | None:
        _, norm, _ = self._optimizer.step()
        return None if norm is None else float(norm)

    def write_state(self, folder: Path, progress: dict[str, Any]) -> None:
        dist_checkpointing.save({**self._sharded_state(is_loading=False), "progress": progress}, str(folder))

    def read_state(self, folder: Path) -> dict[str, Any]:
        loaded: Any = dist_checkpointing.load(self._sharded_state(is_loading=True), str(folder))
        for number, module in enumerate(self.model.get_model_module_list()):
            # with adapters, the checkpoint contains only those
            weights = {key.removeprefix(_PREFIX): value for key, value in loaded[f"model{number}"].items()}
            _name_wrapped_layers(module, weights)
            missing = module.load_state_dict(weights, strict=not self._trains_adapters)
            assert not missing.unexpected_keys, missing.unexpected_keys
        self._optimizer.load_state_dict(loaded["optimizer"])
        return loaded["progress"]

    def save_model(self, path: Path) -> None:
        self._auto.save_hf_pretrained(self.model.model, path, show_progress=False)
        rows = self.model.cfg.unpadded_vocab_size
        if torch.distributed.get_rank() == 0 and rows != self.model.padded_vocab_size:
            _remove_padding(path, rows=rows)
        torch.distributed.barrier()

    def _sharded_state(self, *, is_loading: bool) -> dict[str, Any]:
        modules = self.model.get_model_module_list()
        state = {f"model{number}": self._trained_state(module) for number, module in enumerate(modules)}
        # the names of interleaved stages on one rank are those of others
        weights = {(part, key): value for part, own in state.items() for key, value in own.items()}
        return state | {
            "optimizer": self._optimizer.sharded_state_dict(weights, is_loading=is_loading, metadata=_SHARDING)
        }

    def _trained_state(self, module: Any) -> dict[str, Any]:
        """All weights, or adapters and FP8 scales."""
        state = module.sharded_state_dict(prefix=_PREFIX)
        if not self._trains_adapters:
            return state
        return {
            key: value
            for key, value in state.items()
            if _ADAPTER in key or (self.model.uses_fp8 and key.endswith("_extra_state"))
        }

    @property
    def _trains_adapters(self) -> bool:
        return self.model.cfg.peft.peft_scheme == "lora"


def build(
    config: TrainConfig,
    model_config: DictConfig,
    checkpoint: Path,
    *,
    adapters: Path | None,
    on_groups: Callable[[], None],
) -> BridgeHost:
    """Set up process groups, model and optimizer of this rank.

    Args:
        config: the run's.
        model_config: from model_config.build_model_config.
        checkpoint: Hugging Face folder with the weights.
        adapters: None.
        on_groups: called once the process groups exist.

    Raises:
        UserError: Megatron-Bridge does not know the model, or it has layers that cannot take packed pairs.
    """
    assert adapters is None  # refused by model_config.py
    section = config.model
    rank = _rank_from_environment()
    backend = "nccl" if host.has_cuda() else "gloo"
    if host.has_cuda():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    torch.distributed.init_process_group(backend, rank=rank, world_size=int(os.environ["WORLD_SIZE"]))
    parallel_state.initialize_model_parallel(
        section.tensor_model_parallel_size,
        section.pipeline_model_parallel_size,
        section.virtual_pipeline_model_parallel_size,
        expert_model_parallel_size=section.expert_model_parallel_size,
        expert_tensor_parallel_size=section.tensor_model_parallel_size,
    )
    on_groups()
    tensor_parallel.model_parallel_cuda_manual_seed(section.seed)
    low = config.trainer.precision != "32-true"
    auto = _bridge_of(checkpoint, dtype=torch.bfloat16 if low else torch.float32)
    model = build_model(config, model_config, auto)
    name, decoupled = _OPTIMIZERS[section.optim.name]
    betas = section.optim.betas or (0.9, 0.999)
    optimizer = get_megatron_optimizer(
        OptimizerConfig(
            optimizer=name,
            lr=section.optim.lr,
            weight_decay=section.optim.weight_decay,
            decoupled_weight_decay=decoupled,
            adam_beta1=betas[0],
            adam_beta2=betas[1],
            sgd_momentum=section.optim.momentum or 0.0,
            # an infinite limit clips nothing but still returns the norm
            clip_grad=config.trainer.dpo.gradient_clip_val or math.inf,
            bf16=low,
            params_dtype=torch.bfloat16 if low else torch.float32,
            use_distributed_optimizer=section.optim.name == "mcore_distributed_optim",
        ),
        model.model,
    )
    return BridgeHost(model, optimizer, auto)


def _bridge_of(checkpoint: Path, *, dtype: torch.dtype) -> AutoBridge:
    try:
        return AutoBridge.from_hf_pretrained(str(checkpoint), torch_dtype=dtype)
    except ValueError as error:
        reason = str(error).strip().splitlines()[0].lstrip("\u2717 ")
        raise UserError(f"host=bridge: {checkpoint}: Megatron-Bridge cannot build this model: {reason}") from error


def _name_wrapped_layers(module: Any, weights: dict[str, Any]) -> None:
    """Rename FP8 scales: Megatron-Bridge's adapters save those of their layer by its name, and load them by another."""
    for name, part in module.named_modules():
        if hasattr(part, "to_wrap") and (saved := f"{name}._extra_state") in weights:
            weights[f"{name}.to_wrap._extra_state"] = weights.pop(saved)


def _remove_padding(folder: Path, *, rows: int) -> None:
    """Cut the tables of an exported folder to the vocabulary: Megatron-Bridge 0.6 exports the padding as well."""
    for file in folder.glob("*.safetensors"):
        tensors = load_file(file)
        tables = [name for name in tensors if name.endswith(("embed_tokens.weight", "lm_head.weight"))]
        if tables:
            tensors |= {name: tensors[name][:rows].clone() for name in tables}
            save_file(tensors, file, metadata={"format": "pt"})


def _rank_from_environment() -> int:
    """This process's rank: torchrun sets RANK, srun SLURM_PROCID; a process that neither started is alone."""
    for name, of_slurm, alone in _ENVIRONMENT:
        os.environ.setdefault(name, os.environ.get(of_slurm, alone))
    return int(os.environ["RANK"])


_ENVIRONMENT = (
    ("RANK", "SLURM_PROCID", "0"),
    ("WORLD_SIZE", "SLURM_NTASKS", "1"),
    ("LOCAL_RANK", "SLURM_LOCALID", "0"),
    ("MASTER_ADDR", "", "127.0.0.1"),
    ("MASTER_PORT", "", "0"),
)
