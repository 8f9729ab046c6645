"""Every supported architecture as a tiny random folder, and NeMo itself loading and saving it at a layout."""

from pathlib import Path
from typing import Any

from nemo_minordpo import host
from nemo_minordpo.convert.hf_to_nemo import import_hf
from tests.unit.convert.tiny_hf import write_hf

LLAMA31 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}  # fmt: skip
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama"},
    "llama31": {"model_type": "llama", "rope_scaling": LLAMA31},
    "mistral": {"model_type": "mistral", "sliding_window": 32},
    "mistral_wide_heads": {"model_type": "mistral", "head_dim": 8},
    "qwen15_mha": {"model_type": "qwen2", "num_key_value_heads": 6},
    "qwen2": {"model_type": "qwen2"},
    "qwen2_tied": {"model_type": "qwen2", "tie_word_embeddings": True},
    "qwen3": {"model_type": "qwen3", "head_dim": 8},
    "qwen3_tied": {"model_type": "qwen3", "tie_word_embeddings": True},
    # nine heads in three groups
    "smollm2": {
        "model_type": "llama", "hidden_size": 36, "num_attention_heads": 9, "num_key_value_heads": 3,
        "intermediate_size": 96, "vocab_size": 384, "tie_word_embeddings": True,
    },
}  # fmt: skip
LAYOUTS = {  # tensor-parallel, pipeline-parallel
    "one": (1, 1),
    "tp2": (2, 1),
    "pp2": (1, 2),
    "tp2pp2": (2, 2),
    "tp3": (3, 1),
}


def architectures_of(layout: str) -> list[str]:
    """Architectures that the layout divides evenly: three divides only the nine heads, two all the others."""
    tensor_parallel, _ = LAYOUTS[layout]
    return [name for name in ARCHITECTURES if tensor_parallel == 1 or (tensor_parallel == 3) == (name == "smollm2")]


def write_architectures(folder: Path) -> None:
    """Write `NAME` and `NAME.nemo` for each architecture."""
    folder.mkdir()
    for name, changes in ARCHITECTURES.items():
        write_hf(folder / name, num_hidden_layers=2, **changes)
        import_hf(folder / name, folder / f"{name}.nemo")


def save_again(folder: Path, layout: str, *, tokenizer: Path) -> None:
    """On every rank: make NeMo load each architecture at the layout and save it to `LAYOUT/NAME.nemo`.

    Args:
        folder: output of :func:`write_architectures`.
        layout: a key of LAYOUTS; WORLD_SIZE must be its number of ranks.
        tokenizer: a folder that transformers can load. NeMo needs one, and the tiny models' own cannot be loaded.
    """
    import torch

    for name in architectures_of(layout):
        model = _restore(folder / f"{name}.nemo", layout, tokenizer)
        model.save_to(str(folder / layout / f"{name}.nemo"))
        torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def _restore(nemo: Path, layout: str, tokenizer: Path) -> Any:
    from lightning.pytorch import Trainer
    from nemo.collections.nlp.models.language_modeling.megatron_gpt_model import MegatronGPTModel
    from nemo.collections.nlp.parts.nlp_overrides import NLPDDPStrategy
    from nemo.utils import logging
    from omegaconf import open_dict

    logging.setLevel(logging.ERROR)
    tensor_parallel, pipeline_parallel = LAYOUTS[layout]
    trainer = Trainer(
        accelerator="gpu" if host.has_cuda() else "cpu",
        devices=tensor_parallel * pipeline_parallel,
        precision="32-true",
        strategy=NLPDDPStrategy(no_ddp_communication_hook=True, find_unused_parameters=False),
        logger=False,
        enable_checkpointing=False,
        use_distributed_sampler=False,
    )
    config: Any = MegatronGPTModel.restore_from(str(nemo), trainer=trainer, return_config=True)
    with open_dict(config):
        config.transformer_engine = host.has_transformer_engine()
        config.use_cpu_initialization = not host.has_cuda()
        config.window_size = None
        config.precision = "32-true"
        config.tokenizer.type = str(tokenizer)
        config.tensor_model_parallel_size = tensor_parallel
        config.pipeline_model_parallel_size = pipeline_parallel
    return MegatronGPTModel.restore_from(str(nemo), trainer=trainer, override_config_path=config)
