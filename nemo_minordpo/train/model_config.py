"""The configuration that NeMo builds the model from: the checkpoint's own, our sections, this machine's limits."""

import math
import tarfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from nemo_minordpo.config import ModelSection, TrainConfig, closest
from nemo_minordpo.core.flops import ModelSize
from nemo_minordpo.core.pair_packing import row_multiple
from nemo_minordpo.errors import UserError
from nemo_minordpo.sidecars import tokenizer_folder
from nemo_minordpo.train.layout import data_parallel_size, layout_problems

_CONFIG_NAME = "model_config.yaml"
# Kernels that need CUDA; and weights are made where they stay.
_WITHOUT_CUDA = {
    "use_cpu_initialization": True,
    "bias_dropout_add_fusion": False,
    "masked_softmax_fusion": False,
    "gradient_accumulation_fusion": False,
    "persist_layer_norm": False,
    "apply_rope_fusion": False,
}
# What NeMo's DPO model reads of `model.data`, though our own dataset takes its place.
_UNUSED_DATA = {"data_impl": "jsonl", "splits_string": None, "index_mapping_dir": None, "skip_warmup": True}


def read_checkpoint_config(path: Path) -> DictConfig:
    """`model_config.yaml` of a .nemo file or an extracted folder, its tokenizer where it is now.

    Raises:
        ValueError: it is missing, or what is there is no checkpoint.
    """
    config = _read_config(path)
    beside = tokenizer_folder(path)
    if beside.is_dir() and "tokenizer" in config:
        config.tokenizer.type = str(beside.absolute())  # moved with the checkpoint
    return config


def _read_config(path: Path) -> DictConfig:
    if path.is_dir():
        if not (path / _CONFIG_NAME).is_file():
            raise UserError(f"{path} has no {_CONFIG_NAME}: a .nemo file or an extracted one was expected")
        return _as_config(OmegaConf.load(path / _CONFIG_NAME))
    if not path.is_file():
        raise UserError(f"pretrained_checkpoint.restore_from_path={path}: no such file or folder")
    try:
        with tarfile.open(path) as archive:
            names = [name for name in archive.getnames() if Path(name).name == _CONFIG_NAME]
            member = archive.extractfile(names[0]) if names else None
            if member is None:
                raise UserError(f"{path} holds no {_CONFIG_NAME}: not a .nemo checkpoint")
            return _as_config(OmegaConf.create(member.read().decode()))
    except tarfile.TarError as error:
        raise UserError(f"{path} is not a .nemo checkpoint ({error}); make one with `minordpo import-hf`") from error


def build_model_config(config: TrainConfig, checkpoint: DictConfig, *, cuda: bool, te: bool) -> DictConfig:
    """What MegatronGPTMinorDPOModel is built with.

    Args:
        config: the run's configuration.
        checkpoint: :func:`read_checkpoint_config`.
        cuda, te: whether this machine has a CUDA device, and Transformer Engine.

    Raises:
        ValueError: keys that the checkpoint does not know, or a layout that does not divide the model.
    """
    model: Any = OmegaConf.create(OmegaConf.to_container(checkpoint, resolve=True))
    unknown = [key for key in config.checkpoint_overrides if key not in model]
    if unknown:
        hints = "; ".join(f"model.{key}{closest(key, [str(k) for k in model])}" for key in unknown)
        raise UserError(f"neither a setting nor in the checkpoint's {_CONFIG_NAME}: {hints}")
    with open_dict(model):
        for name in ("target", "nemo_version"):
            model.pop(name, None)
        model.merge_with(config.checkpoint_overrides)
        model.update({key: value for key, value in _model_settings(config.model).items() if value is not None})
        model.mcore_gpt = True
        model.precision = config.trainer.precision
        model.data = {**_UNUSED_DATA, "seq_length": config.model.data.seq_length}
        model.dpo = asdict(config.model.dpo)
        # NeMo's counter of micro-batches, which packing does not use, wants a multiple of the data-parallel size
        data_parallel = data_parallel_size(config)
        model.global_batch_size = math.ceil(config.model.global_batch_size / data_parallel) * data_parallel
        model.optim = _optimizer_settings(config)
        model.peft = _peft_settings(config)
        if not te:
            model.transformer_engine = False
            model.fp8 = False
        if not cuda:
            # SwiGLU has a kernel for CPUs of this project (host/fused.py)
            model.update({**_WITHOUT_CUDA, "bias_activation_fusion": model.get("activation") == "fast-swiglu"})
        model.setdefault("gradient_as_bucket_view", True)
        if _window(model) >= config.model.data.seq_length:
            model.window_size = None  # it never cuts a pair
        model.encoder_seq_length = max(model.encoder_seq_length, config.model.data.seq_length)
    _check(config, model, cuda=cuda, te=te)
    return model


def row_multiple_of(model: Any) -> int:
    """What the length of a row is divisible by, for a configuration of :func:`build_model_config`."""
    return row_multiple(
        tensor_parallel=model.tensor_model_parallel_size,
        sequence_parallel=model.sequence_parallel,
        fp8=bool(model.get("fp8", False)),
    )


def model_size(model: Any, *, vocab_size: int) -> ModelSize:
    """Sizes that operations and memory are counted from.

    Args:
        model: a model configuration as :func:`build_model_config` gives it.
        vocab_size: of the tokenizer, for a configuration that names none itself.
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
    )


def _peft_settings(config: TrainConfig) -> dict[str, Any]:
    settings = asdict(config.model.peft)
    lora = settings["lora_tuning"]
    lora["alpha"] = lora["alpha"] or lora["adapter_dim"]
    # new adapters change nothing: the second of the two matrices is zero
    lora |= {"column_init_method": "xavier", "row_init_method": "zero", "layer_selection": None, "weight_tying": False}
    return settings


def _window(model: DictConfig) -> int:
    """Tokens that a sliding window shows a token; 0 where there is none."""
    window = model.get("window_size")
    return window[0] if window else 0


def _as_config(loaded: Any) -> DictConfig:
    if not isinstance(loaded, DictConfig):
        raise UserError(f"{_CONFIG_NAME} does not hold settings by name")
    return loaded


def _model_settings(section: ModelSection) -> dict[str, Any]:
    return {key: value for key, value in asdict(section).items() if key not in ("dpo", "data", "optim", "peft")}


def _optimizer_settings(config: TrainConfig) -> dict[str, Any]:
    """NeMo hands every key to the optimizer; the schedule is ours (schedule.py)."""
    settings = {key: value for key, value in asdict(config.model.optim).items() if value is not None}
    settings.pop("sched")
    if config.model.optim.name in ("adam", "adamw"):
        settings["fused"] = True  # torch's own; one pass over the weights instead of about ten
    return settings


def _check(config: TrainConfig, model: DictConfig, *, cuda: bool, te: bool) -> None:
    problems = layout_problems(model, num_nodes=config.trainer.num_nodes, devices=config.trainer.devices)
    if model.tokenizer.library != "huggingface":
        problems.append(f"model.tokenizer.library={model.tokenizer.library}: huggingface expected")
    if not cuda and config.trainer.precision != "32-true":
        problems.append(f"trainer.precision={config.trainer.precision} needs a GPU; on this machine: precision=fp32")
    if not cuda and config.trainer.accelerator == "gpu":
        problems.append("trainer.accelerator=gpu: this machine has no CUDA device")
    adapters = config.model.peft.peft_scheme != "none"
    recomputed = {key: model.get(f"activations_checkpoint_{key}") for key in ("granularity", "method", "num_layers")}
    if recomputed["granularity"] not in (None, "selective", "full"):
        problems.append(
            f"model.activations_checkpoint_granularity={recomputed['granularity']}: null, selective or full expected"
        )
    if recomputed["granularity"] == "full" and None in recomputed.values():
        problems.append(
            "model.activations_checkpoint_granularity=full: say of which layers, such as all of them, one by one: "
            "model.activations_checkpoint_method=uniform model.activations_checkpoint_num_layers=1"
        )
    if not te and config.model.sequence_parallel and adapters:
        problems.append(
            "model.sequence_parallel=true with model.peft.peft_scheme=lora needs Transformer Engine (NeMo's adapters)"
        )
    if adapters and model.get("qk_layernorm") and config.model.optim.name == "mcore_distributed_optim":
        problems.append(
            "model.optim.name=mcore_distributed_optim with model.peft.peft_scheme=lora: Megatron-Core would sum "
            "gradients of the model's query and key norms, which are frozen; give model.optim.name=adamw"
        )
    problems += _fp8_problems(model) if model.get("fp8") else []
    problems += _fusion_problems(model, te=te)
    problems += _packing_problems(config, model, cuda=cuda)
    if problems:
        raise UserError("\n".join(problems))


def _fp8_problems(model: DictConfig) -> list[str]:
    """FP8's matrix products take weights whose sides are multiples of 16, on each rank."""
    tensor = model.tensor_model_parallel_size
    attended = (model.get("kv_channels") or model.hidden_size // model.num_attention_heads) * model.num_attention_heads
    sides = {"hidden_size": model.hidden_size, "ffn_hidden_size / TP": model.ffn_hidden_size // tensor,
             "heads x head size / TP": attended // tensor}  # fmt: skip
    return [f"model.fp8: {name} = {size} is no multiple of 16" for name, size in sides.items() if size % 16]


def _fusion_problems(model: DictConfig, *, te: bool) -> list[str]:
    """What NeMo would turn off with a line in a log, or Megatron-Core would fail at after loading."""
    if model.get("gradient_accumulation_fusion") and not (te and model.megatron_amp_O2):
        return [
            "model.gradient_accumulation_fusion=true (fusions=te) needs Transformer Engine, and bfloat16 with float32 "
            "main weights: precision=bf16 or fp8_hybrid"
        ]
    return []


def _packing_problems(config: TrainConfig, model: DictConfig, *, cuda: bool) -> list[str]:
    """What cannot work when pairs share rows, with the reason."""
    window = _window(model)
    embedding = model.get("position_embedding_type", "learned_absolute")
    return [
        message
        for wrong, message in (
            (
                model.get("context_parallel_size", 1) > 1,
                "model.context_parallel_size > 1: a row of packed pairs cannot be split over context-parallel ranks",
            ),
            (
                model.get("virtual_pipeline_model_parallel_size") is not None,
                "model.virtual_pipeline_model_parallel_size: interleaved stages want a number of micro-batches that "
                "packing does not give",
            ),
            (
                embedding not in ("rope", "learned_absolute", "none"),
                f"model.position_embedding_type={embedding}: positions start again inside a row of packed pairs, "
                "which only rope and learned_absolute can express",
            ),
            (
                bool(window),
                f"model.window_size: the sliding window of {window} tokens is shorter than "
                f"model.data.seq_length={config.model.data.seq_length}; give model.data.seq_length={window}",
            ),
            (
                bool(model.get("attention_dropout")),
                "model.attention_dropout: the attention of packed pairs has none; give +model.attention_dropout=0",
            ),
            (
                bool(model.get("enable_cuda_graph")),
                "model.enable_cuda_graph: rows of packed pairs differ in length and structure from step to step",
            ),
            (
                model.get("num_moe_experts") is not None,
                "model.num_moe_experts: mixture-of-experts models are not supported",
            ),
        )
        if wrong
    ]
