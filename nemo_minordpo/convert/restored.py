"""A checkpoint as NeMo's own model, in one process, whatever it is and at whatever layout it was trained."""

import logging
from pathlib import Path
from typing import Any

import torch

from nemo_minordpo import host
from nemo_minordpo.convert import nemo_config as model_config
from nemo_minordpo.convert.checkpoint import PREFIX, Checkpoint
from nemo_minordpo.convert.lora_weights import TARGETS, Adapters, read_adapters
from nemo_minordpo.convert.nemo_source import WEIGHTS_FOLDER, NemoSource
from nemo_minordpo.errors import UserError

_PLAIN_FLOAT32 = {
    "window_size": None,  # texts are cut where it begins
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
    **model_config.NO_FUSIONS,
}


def restore(source: NemoSource, *, tokenizer: Path, scratch: Path) -> Any:
    """NeMo's MegatronGPTModel with the weights and adapters of a source, in float32; `.model` is Megatron's.

    Args:
        source: what `open_source` found, with a config.
        tokenizer: Hugging Face folder that stands for the one which the config names.
        scratch: existing empty folder; files are linked into it, not copied.

    Raises:
        ValueError: a source that NeMo 2.1 - 2.4 cannot restore.
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
        """NeMo's own model, which may get adapters."""

        def __init__(self, cfg: Any, trainer: Any) -> None:  # NeMo looks at the names of the arguments
            super().__init__(cfg, trainer=trainer)

    nemo_logging.setLevel(logging.ERROR)  # NeMo warns of some sixty keys that no model config has
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
    config.target = model_config.TARGET  # of a run it would be the class that trains
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
    """A folder that looks like an unpacked `.nemo`."""
    weights = folder / WEIGHTS_FOLDER
    weights.mkdir()
    for file in source.weights.iterdir():
        if file.name != "common.pt":  # that of a training holds what only its own classes can read
            (weights / file.name).symlink_to(file.absolute())
    torch.save({}, weights / "common.pt")
    model_config.write_model_config(folder / model_config.FILE, source.config or {})
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
