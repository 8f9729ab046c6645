"""The configuration from which NeMo builds the model: the checkpoint's own, our settings, and this machine's limits."""

import math
from dataclasses import asdict, is_dataclass, replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from nemo_minordpo.config import ModelSection, OptimSection, TrainConfig, closest
from nemo_minordpo.config.lora import LoraFacts, linear_layers, peft_section
from nemo_minordpo.core.flops import ModelSize
from nemo_minordpo.core.pair_packing import row_multiple
from nemo_minordpo.errors import UserError
from nemo_minordpo.file_names import MODEL_CONFIG
from nemo_minordpo.sidecars import tokenizer_folder
from nemo_minordpo.train.model import starting_adapters
from nemo_minordpo.train.model.hf_config import read_hf_config
from nemo_minordpo.train.model.layout import data_parallel_size
from nemo_minordpo.train.model.nemo_file import read_nemo
from nemo_minordpo.train.model.refusals import require_possible, window_of

# Turns off kernels that need CUDA, and initialises weights on the CPU.
_WITHOUT_CUDA = {
    "use_cpu_initialization": True,
    "bias_dropout_add_fusion": False,
    "masked_softmax_fusion": False,
    "gradient_accumulation_fusion": False,
    "persist_layer_norm": False,
    "apply_rope_fusion": False,
    # NeMo's main gradients would be reduced while the backward pass runs; it then waits for CUDA, but not for gloo
    "async_grad_allreduce": False,
}
# Keys of `model.data` that NeMo's DPO model reads although our own dataset replaces NeMo's.
_UNUSED_DATA = {"data_impl": "jsonl", "splits_string": None, "index_mapping_dir": None, "skip_warmup": True}
# Required to build a model.
_SIZES = ("num_layers", "hidden_size", "ffn_hidden_size", "num_attention_heads", "encoder_seq_length")


def checkpoint_config(
    config: TrainConfig, path: Path, *, setting: str = "pretrained_checkpoint.restore_from_path"
) -> DictConfig:
    """The model's own configuration, in NeMo's keys, from what the host starts from; arguments and errors as below."""
    read = read_hf_config if config.host == "bridge" else read_checkpoint_config
    return read(path, setting=setting)


def read_checkpoint_config(path: Path, *, setting: str = "pretrained_checkpoint.restore_from_path") -> DictConfig:
    """`model_config.yaml` of a .nemo file or extracted folder of a model, with the tokenizer's current path.

    Args:
        path: the file or folder.
        setting: which names it, for messages.

    Raises:
        UserError: it is missing, or is not a checkpoint of a whole model.
    """
    file = read_nemo(path, setting=setting)
    config = file.config
    if lost := [key for key in _SIZES if not isinstance(config.get(key), int)]:
        raise UserError(f"{setting}={path}: its {MODEL_CONFIG} has no integer {', '.join(lost)}: is the file complete?")
    scheme = (config.get("peft") or {}).get("peft_scheme") or "none"
    of_rank_files = file.has_rank_files and not file.tensors and scheme != "none"
    if of_rank_files or (file.tensors and file.tensors.keys() == file.adapters.keys()):
        raise UserError(
            f"{setting}={path} contains only adapters: give the model they were trained on here, and the adapters in "
            f"{starting_adapters.SETTING} (with model.peft.peft_scheme=lora)"
        )
    if file.adapters:
        raise UserError(
            f"{setting}={path} has adapters in addition to its weights: merge them with minordpo export-hf, then "
            "convert the result to a model to start from with minordpo import-hf"
        )
    tokenizer = tokenizer_folder(path)
    if tokenizer.is_dir() and "tokenizer" in config:
        config.tokenizer.type = str(tokenizer.absolute())  # moved with the checkpoint
    return config


def build_model_config(config: TrainConfig, checkpoint: DictConfig, *, cuda: bool, te: bool) -> DictConfig:
    """The configuration from which the host builds its model.

    Args:
        config: the run's configuration.
        checkpoint: from :func:`checkpoint_config`.
        cuda, te: whether this machine has a CUDA device, and Transformer Engine.

    Raises:
        UserError: keys that the checkpoint does not have, a layout that does not divide the model, or adapters to
            start from that do not fit it.
    """
    model: Any = OmegaConf.create(OmegaConf.to_container(checkpoint, resolve=True))
    unknown = [key for key in config.checkpoint_overrides if key not in model]
    if unknown:
        hints = "; ".join(f"model.{key}{closest(key, [str(k) for k in model])}" for key in unknown)
        raise UserError(f"neither a setting nor a key of the checkpoint's {MODEL_CONFIG}: {hints}")
    with open_dict(model):
        for name in ("target", "nemo_version"):
            model.pop(name, None)
        model.merge_with(config.checkpoint_overrides)
        model.update(_own_settings(config.model))
        model.mcore_gpt = True
        model.precision = config.trainer.precision
        model.data = {**_UNUSED_DATA, "seq_length": config.model.data.seq_length}
        model.dpo = asdict(config.model.dpo)
        # NeMo's micro-batch counter, which packing does not use, requires a multiple of the data-parallel size
        data_parallel = data_parallel_size(config)
        model.global_batch_size = math.ceil(config.model.global_batch_size / data_parallel) * data_parallel
        model.optim = _optimizer_settings(config)
        model.peft = peft_section(_adapters(config, model), scheme=config.model.peft.peft_scheme)
        if not te:
            model.transformer_engine = False
            model.fp8 = False
        if not cuda:
            # for SwiGLU on CPUs this project has its own kernel (host/fused.py)
            model.update({**_WITHOUT_CUDA, "bias_activation_fusion": model.get("activation") == "fast-swiglu"})
        model.setdefault("gradient_as_bucket_view", True)
        if window_of(model) >= config.model.data.seq_length:
            model.window_size = None  # it never cuts a pair
        model.encoder_seq_length = max(model.encoder_seq_length, config.model.data.seq_length)
    require_possible(config, model, cuda=cuda, te=te)
    return model


def row_multiple_of(model: Any) -> int:
    """The number that row lengths must be multiples of, for a configuration from :func:`build_model_config`."""
    return row_multiple(
        tensor_parallel=model.tensor_model_parallel_size,
        sequence_parallel=model.sequence_parallel,
        fp8=bool(model.get("fp8", False)),
    )


def num_rows_multiple_of(model: Any) -> int:
    """The number that the rows of a rank must be a multiple of: interleaved stages take them in groups."""
    return model.pipeline_model_parallel_size if model.get("virtual_pipeline_model_parallel_size") else 1


def model_size(model: Any, *, vocab_size: int) -> ModelSize:
    """The sizes that determine operations and memory.

    Args:
        model: a model configuration from :func:`build_model_config`.
        vocab_size: the tokenizer's, used if the configuration has none.
    """
    return ModelSize(
        num_layers=model.num_layers,
        hidden_size=model.hidden_size,
        ffn_hidden_size=model.ffn_hidden_size,
        num_heads=model.num_attention_heads,
        num_query_groups=model.get("num_query_groups") or model.num_attention_heads,
        head_size=model.get("kv_channels") or model.hidden_size // model.num_attention_heads,
        vocab_size=model.get("unpadded_vocab_size") or model.get("override_vocab_size") or vocab_size,
        gated=str(model.get("activation", "gelu")).removeprefix("fast-") in ("swiglu", "geglu", "reglu"),
        num_experts=model.get("num_moe_experts") or 1,
        experts_per_token=model.get("moe_router_topk") or 1 if model.get("num_moe_experts") else 1,
    )


def _adapters(config: TrainConfig, model: DictConfig) -> LoraFacts:
    """The adapters to start from (loaded by adapters.py), or new ones."""
    lora = config.model.peft.lora_tuning
    if config.model.peft.restore_from_path is not None:
        facts = starting_adapters.read_starting_adapters(config, model, model_size(model, vocab_size=0))
        return facts if lora.adapter_dropout is None else replace(facts, dropout=lora.adapter_dropout)
    assert lora.target_modules is not None  # config/loading.py fills in defaults for new adapters
    assert lora.adapter_dim is not None
    return LoraFacts(
        rank=lora.adapter_dim,
        alpha=lora.alpha or lora.adapter_dim,
        dropout=lora.adapter_dropout or 0.0,
        targets=linear_layers(lora.target_modules),
    )


def _own_settings(section: ModelSection | OptimSection) -> dict[str, Any]:
    """The settings of a section that are set, without its subsections."""
    return {key: value for key, value in vars(section).items() if value is not None and not is_dataclass(value)}


def _optimizer_settings(config: TrainConfig) -> dict[str, Any]:
    """The optimizer's arguments, without a schedule: NeMo passes on every key, and the schedule is in schedule.py."""
    settings = _own_settings(config.model.optim)
    if config.model.optim.name in ("adam", "adamw"):
        settings["fused"] = True  # torch's own kernel: one pass over the weights instead of about ten
    return settings
