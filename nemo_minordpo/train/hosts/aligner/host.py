"""Sets up NeMo-Aligner's model and NeMo's optimizer, and runs them.

Imports NeMo, so call `host.prepare()` before importing this module.
"""

import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from megatron.core import dist_checkpointing, tensor_parallel
from nemo.collections.nlp.parts.megatron_trainer_builder import MegatronTrainerBuilder
from nemo.utils import logging as nemo_logging
from nemo_aligner.utils.train_script_utils import (
    extract_optimizer_scheduler_from_ptl_model,
    init_distributed,
    init_peft,
    init_using_ptl,
)
from nemo_aligner.utils.train_utils import clip_gradients
from nemo_aligner.utils.utils import load_from_nemo, retrieve_model_state_dict_in_cpu
from omegaconf import DictConfig, OmegaConf

from nemo_minordpo import host
from nemo_minordpo.config import TrainConfig
from nemo_minordpo.train.hosts.aligner.adapters import load_adapters
from nemo_minordpo.train.hosts.aligner.minordpo_model import MegatronGPTMinorDPOModel
from nemo_minordpo.train.hosts.aligner.optimizer_state import load_optimizer_state, sharded_optimizer_state


class AlignerHost:
    """The :class:`~nemo_minordpo.train.hosts.protocol.Host` of NeMo-Aligner; see :func:`build`."""

    def __init__(self, model: MegatronGPTMinorDPOModel, optimizer: Any, strategy: Any) -> None:
        """
        Args:
            model: after Lightning's set-up.
            optimizer: torch's, or NeMo's wrapper of it.
            strategy: NeMo's; it knows how an optimizer is sharded.
        """
        self.model = model
        self._optimizer = optimizer
        self._strategy = strategy

    def begin_step(self, *, rate: float, seed: int) -> None:
        tensor_parallel.model_parallel_cuda_manual_seed(seed)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self._optimizer.zero_grad()
        self.model.prepare_for_training_step()

    def reduce_and_clip(self, *, max_norm: float) -> float | None:
        self.model.finish_training_step()
        norm = clip_gradients(self.model, max_norm)
        return None if norm is None else float(norm)

    def update_weights(self) -> float | None:
        stepped = self._optimizer.step()
        # Megatron's distributed optimizer clips within its step, which returns (loss, norm, zeros)
        return float(stepped[1]) if self.model.use_mcore_dist_optim and stepped[1] is not None else None

    def write_state(self, folder: Path, progress: dict[str, Any]) -> None:
        state, steps = self._sharded_state(is_loading=False)
        # a single number of steps: see optimizer_state.py
        state |= {"progress": progress, "optimizer_steps": steps}
        self._strategy.unwrapped_checkpoint_io.save_checkpoint(state, str(folder))

    def read_state(self, folder: Path) -> dict[str, Any]:
        state, _ = self._sharded_state(is_loading=True)
        common = dist_checkpointing.load_common_state_dict(folder)
        loaded = self._strategy.unwrapped_checkpoint_io.load_checkpoint(str(folder), sharded_state_dict=state)
        for module in self.model.get_model_module_list():
            # with adapters, the checkpoint contains only those
            weights = {key.removeprefix("model."): value for key, value in loaded["model"].items()}
            missing = module.load_state_dict(weights, strict=not self.model.use_peft)
            assert not missing.unexpected_keys, missing.unexpected_keys
        load_optimizer_state(self._optimizer, loaded["optimizer"], steps=common["optimizer_steps"])
        return common["progress"]

    def save_model(self, path: Path) -> None:
        self.model.save_to(str(path))

    def _sharded_state(self, *, is_loading: bool) -> tuple[dict[str, Any], int | None]:
        """Model and optimizer as Megatron's sharded state, and the optimizer's steps if that does not include them."""
        weights = self.model.sharded_state_dict()
        of_optimizer, steps = sharded_optimizer_state(self._strategy, self._optimizer, weights, is_loading=is_loading)
        return {"model": weights, "optimizer": of_optimizer}, steps


def build(
    config: TrainConfig,
    model_config: DictConfig,
    checkpoint: Path,
    *,
    adapters: Path | None,
    on_groups: Callable[[], None],
) -> AlignerHost:
    """Set up process groups, model, live reference and optimizer of this rank, in the order they need.

    Args:
        config: the run's.
        model_config: from model_config.build_model_config.
        checkpoint: `.nemo` with the weights.
        adapters: `.nemo` with the adapters to start from.
        on_groups: called once the process groups exist.
    """
    _quiet_nemo()
    trainer = _lightning_trainer(config, model_config)
    model: Any = load_from_nemo(
        MegatronGPTMinorDPOModel, model_config, trainer, strict=True, restore_path=str(checkpoint)
    )
    init_distributed(trainer, model, model_config.get("transformer_engine", False))
    on_groups()
    if config.model.peft.peft_scheme != "none":
        init_peft(model, model_config)
    if adapters is not None:
        load_adapters(model, adapters)
    if model.needs_reference and config.model.dpo.reference_log_probs == "live":
        model.ref_policy_state_dict = retrieve_model_state_dict_in_cpu(
            model, megatron_amp_O2=model_config.megatron_amp_O2
        )
    init_using_ptl(trainer, model, None, None)
    optimizer, _ = extract_optimizer_scheduler_from_ptl_model(model)
    return AlignerHost(model, optimizer, trainer.strategy)


def _lightning_trainer(config: TrainConfig, model_config: Any) -> Any:
    """Lightning's Trainer as NeMo builds it, for strategy and precision; its own loop never runs."""
    trainer = config.trainer
    accelerator = trainer.accelerator
    if accelerator == "auto":
        accelerator = "gpu" if host.has_cuda() else "cpu"
    settings = {
        "num_nodes": trainer.num_nodes,
        "devices": trainer.devices,
        "accelerator": accelerator,
        "precision": trainer.precision,
        "logger": False,
        "enable_checkpointing": False,
        "use_distributed_sampler": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        # Megatron's distributed optimizer compares it with 0; an infinite limit clips nothing
        "gradient_clip_val": config.trainer.dpo.gradient_clip_val or math.inf,
        # only for NeMo's own schedules, which are not used
        "max_steps": 1,
    }
    cfg = OmegaConf.create(
        {"trainer": settings, "model": model_config, "exp_manager": {"log_tflops_per_sec_per_gpu": False}}
    )
    return MegatronTrainerBuilder(cfg).create_trainer()


def _quiet_nemo() -> None:
    """Silence NeMo's and Lightning's hundreds of set-up lines per rank; errors are still shown."""
    nemo_logging.setLevel(logging.ERROR)
    for name in ("lightning", "lightning.pytorch", "lightning.fabric", "megatron", "torch.distributed"):
        logging.getLogger(name).setLevel(logging.ERROR)
