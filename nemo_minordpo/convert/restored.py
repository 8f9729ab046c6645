"""Load any checkpoint as NeMo's own model in one process, whatever layout it was trained at."""

import logging
from pathlib import Path
from typing import Any

import torch

from nemo_minordpo import file_names, host
from nemo_minordpo.convert import nemo_config
from nemo_minordpo.convert.checkpoint import PREFIX, Checkpoint
from nemo_minordpo.convert.lora_weights import TARGETS, Adapters, read_adapters
from nemo_minordpo.convert.nemo_source import NemoSource
from nemo_minordpo.errors import UserError

_PLAIN_FLOAT32 = {
    "window_size": None,  # texts are cut before the window matters
    "precision": "32-true",
    "megatron_amp_O2": False,
    "fp8": False,
    "tensor_model_parallel_size": 1,
    "pipeline_model_parallel_size": 1,
    "virtual_pipeline_model_parallel_size": None,
    "micro_batch_size": 1,
    "global_batch_size": 1,
    "context_parallel_size": 1,
    "sequence_parallel": False,
    "activations_checkpoint_granularity": None,
    **nemo_config.NO_FUSIONS,
}


def restore(source: NemoSource, *, tokenizer: Path, scratch: Path) -> Any:
    """NeMo's MegatronGPTModel with the weights and adapters of a source, in float32; `.model` is Megatron's.

    Args:
        source: result of `open_source`, with a config.
        tokenizer: Hugging Face folder to use instead of the one that the config names.
        scratch: an existing empty folder; files are linked into it, not copied.

    Raises:
        UserError: NeMo 2.1 - 2.4 cannot restore the source.
    """
    assert source.config is not None, source.origin
    if Checkpoint(source.weights).prefix != PREFIX:
        raise UserError(f"{source.origin}: a checkpoint of NeMo 2; export it, import that, and verify the result")
    host.prepare()
    from lightning.pytorch import Trainer
    from nemo.collections.nlp.models.language_modeling.megatron_gpt_model import MegatronGPTModel
    from nemo.collections.nlp.parts.mixins.nlp_adapter_mixins import NLPAdapterModelMixin
    from nemo.collections.nlp.parts.nlp_overrides import NLPDDPStrategy, NLPSaveRestoreConnector
    from nemo.utils import logging as nemo_logging
    from omegaconf import OmegaConf

    class Restored(NLPAdapterModelMixin, MegatronGPTModel):
        """NeMo's own model, with support for adapters."""

        def __init__(self, cfg: Any, trainer: Any) -> None:  # NeMo inspects the argument names
            super().__init__(cfg, trainer=trainer)

    nemo_logging.setLevel(logging.ERROR)  # NeMo warns about some sixty keys that no model config has
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    trainer = Trainer(
        accelerator="gpu" if host.has_cuda() else "cpu",
        devices=1,
        precision="32-true",
        strategy=NLPDDPStrategy(no_ddp_communication_hook=True, find_unused_parameters=False),
        logger=False,
        enable_checkpointing=False,
        use_distributed_sampler=False,
    )
    config: Any = OmegaConf.create(source.config | _PLAIN_FLOAT32)
    config.target = nemo_config.TARGET  # a run's config has the training class here
    config.transformer_engine = host.has_transformer_engine()
    config.use_cpu_initialization = not host.has_cuda()
    config.tokenizer = {**(source.config.get("tokenizer") or {}), "library": "huggingface", "type": str(tokenizer)}
    connector = NLPSaveRestoreConnector()
    connector.model_extracted_dir = str(_as_unpacked(source, scratch))
    model: Any = Restored.restore_from(
        connector.model_extracted_dir,
        trainer=trainer,
        override_config_path=config,
        save_restore_connector=connector,
    )
    if source.adapters is not None:
        _add_adapters(model, read_adapters(source))
    return model.eval()


def _as_unpacked(source: NemoSource, folder: Path) -> Path:
    """Make a folder like an unpacked `.nemo`."""
    weights = folder / file_names.NEMO_WEIGHTS
    weights.mkdir()
    for file in source.weights.iterdir():
        if file.name != "common.pt":  # a training run's needs its own classes to load
            (weights / file.name).symlink_to(file.absolute())
    torch.save({}, weights / "common.pt")
    nemo_config.write_model_config(folder / file_names.MODEL_CONFIG, source.config or {})
    return folder


@torch.no_grad()
def _add_adapters(model: Any, adapters: Adapters) -> None:
    from nemo.collections.nlp.parts.peft_config import LoraPEFTConfig

    model.add_adapter(LoraPEFTConfig(model.cfg))
    for layer in model.model.decoder.layers:
        for place, weight in TARGETS.items():
            target = f"decoder.layers.{weight}"
            if target in adapters.targets:
                a, b = adapters.read(target, layer.layer_number - 1)
                adapter = layer.get_submodule(place)
                adapter.linear_in.weight.copy_(a)
                adapter.linear_out.weight.copy_(b)
