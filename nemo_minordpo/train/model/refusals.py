"""What cannot be trained, with the reason: layouts, precisions, fusions, and what packed pairs do not support."""

from importlib.util import find_spec

from omegaconf import DictConfig

from nemo_minordpo.config import ModelSection, TrainConfig
from nemo_minordpo.errors import UserError
from nemo_minordpo.train.model.layout import data_parallel_size, layout_problems

# Those of Megatron-Core itself; the others are Apex's.
_OPTIMIZERS_OF_BRIDGE = ("adam", "adamw", "sgd", "mcore_distributed_optim")


def window_of(model: DictConfig) -> int:
    """Size of the attention's sliding window, in tokens; 0 if there is none."""
    window = model.get("window_size")
    return window[0] if window else 0


def require_possible(config: TrainConfig, model: DictConfig, *, cuda: bool, te: bool) -> None:
    """Refuse a model configuration that cannot be trained here.

    Args:
        config: the run's.
        model: the model's, complete.
        cuda, te: whether this machine has a CUDA device, and Transformer Engine.

    Raises:
        UserError: with one line for each problem.
    """
    problems = layout_problems(model, num_nodes=config.trainer.num_nodes, devices=config.trainer.devices)
    if model.tokenizer.library != "huggingface":
        problems.append(f"model.tokenizer.library={model.tokenizer.library}: huggingface expected")
    problems += [] if cuda else _problems_of_precision_on_cpus(config)
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
            "model.activations_checkpoint_granularity=full also needs a method and a number of layers; for all layers, "
            "one by one: model.activations_checkpoint_method=uniform model.activations_checkpoint_num_layers=1"
        )
    if not te and config.model.sequence_parallel and adapters:
        problems.append(
            "model.sequence_parallel=true with model.peft.peft_scheme=lora needs Transformer Engine (NeMo's adapters)"
        )
    if adapters and model.get("qk_layernorm") and config.model.optim.name == "mcore_distributed_optim":
        problems.append(
            "model.optim.name=mcore_distributed_optim with model.peft.peft_scheme=lora: Megatron-Core would sum "
            "gradients of the model's query and key norms, which are frozen; use model.optim.name=adamw"
        )
    problems += _fp8_problems(model) if model.get("fp8") else []
    problems += _bridge_problems(config.model) if config.host == "bridge" else []
    problems += _interleaving_problems(config, model)
    problems += _expert_problems(config, model)
    problems += _fusion_problems(model, te=te, bridge=config.host == "bridge")
    problems += _packing_problems(config, model, cuda=cuda)
    if problems:
        raise UserError("\n".join(problems))


def _problems_of_precision_on_cpus(config: TrainConfig) -> list[str]:
    """CPUs train in float32, or in bfloat16 with main weights."""
    precision, section = config.trainer.precision, config.model
    if section.fp8:
        return ["model.fp8=true (precision=fp8_hybrid) needs a GPU; use precision=bf16 or fp32 on this machine"]
    if precision == "32-true" or (precision == "bf16-mixed" and section.megatron_amp_O2):
        return []
    weights = "" if precision == "16-mixed" else f" with model.megatron_amp_O2={str(section.megatron_amp_O2).lower()}"
    return [f"trainer.precision={precision}{weights} needs a GPU; use precision=bf16 or fp32 on this machine"]


def _bridge_problems(section: ModelSection) -> list[str]:
    """What only the other host supports so far."""
    name, start = section.optim.name, section.peft.restore_from_path
    return [
        f"host=bridge does not support {setting} yet; host=aligner does"
        for wrong, setting in (
            (start is not None, f"model.peft.restore_from_path={start}"),
            (name not in _OPTIMIZERS_OF_BRIDGE, f"model.optim.name={name}"),
        )
        if wrong
    ]


def _interleaving_problems(config: TrainConfig, model: DictConfig) -> list[str]:
    """Several pipeline stages on one rank."""
    interleaved, pipeline = model.get("virtual_pipeline_model_parallel_size"), model.pipeline_model_parallel_size
    setting = f"model.virtual_pipeline_model_parallel_size={interleaved}"
    if interleaved is None:
        return []
    if config.host != "bridge":
        return [f"{setting}: interleaved stages are supported by host=bridge only"]
    problems = []
    if pipeline == 1 or model.num_layers % (pipeline * interleaved):
        problems.append(
            f"{setting}: needs several pipeline stages, and num_layers={model.num_layers} divisible by them times it "
            f"(model.pipeline_model_parallel_size={pipeline})"
        )
    if config.trainer.dpo.watch.interval:
        problems.append(f"trainer.dpo.watch.interval with {setting}: answers are written one row at a time")
    return problems


def _expert_problems(config: TrainConfig, model: DictConfig) -> list[str]:
    """Mixtures of experts, and how their experts are spread over the ranks."""
    experts, spread = model.get("num_moe_experts"), config.model.expert_model_parallel_size
    setting = f"model.expert_model_parallel_size={spread}"
    if not experts:
        return [f"{setting}: this model has no experts"] if spread > 1 else []
    if config.host != "bridge":
        return ["model.num_moe_experts: mixtures of experts are trained by host=bridge only"]
    data_parallel, tensor = data_parallel_size(config), config.model.tensor_model_parallel_size
    problems = [
        f"{setting} does not divide {what}"
        for what, number in ((f"the model's {experts} experts", experts),
                             (f"the {data_parallel} data-parallel ranks", data_parallel))
        if number % spread
    ]  # fmt: skip
    if tensor > 1 and not config.model.sequence_parallel:
        problems.append(
            f"model.tensor_model_parallel_size={tensor} with a mixture of experts: Megatron-Core also needs "
            "model.sequence_parallel=true"
        )
    if config.model.fp8:
        problems.append("model.fp8=true (precision=fp8_hybrid) with a mixture of experts is not supported")
    if spread > 1 and config.trainer.dpo.watch.interval:
        problems.append(
            f"trainer.dpo.watch.interval with {setting}: ranks that share experts would need answers of one length"
        )
    if config.model.peft.peft_scheme != "none":
        problems.append("model.peft.peft_scheme=lora: adapters of experts are not supported")
    return problems


def _fp8_problems(model: DictConfig) -> list[str]:
    """FP8 matrix products require the sides of each rank's weights to be multiples of 16."""
    tensor = model.tensor_model_parallel_size
    attended = (model.get("kv_channels") or model.hidden_size // model.num_attention_heads) * model.num_attention_heads
    sides = {"hidden_size": model.hidden_size, "ffn_hidden_size / TP": model.ffn_hidden_size // tensor,
             "heads x head size / TP": attended // tensor}  # fmt: skip
    return [f"model.fp8: {name} = {size} is not a multiple of 16" for name, size in sides.items() if size % 16]


def _fusion_problems(model: DictConfig, *, te: bool, bridge: bool) -> list[str]:
    """Fusions that NeMo would turn off with only a log line, or that would fail in Megatron-Core after loading."""
    if model.get("gradient_accumulation_fusion") and bridge and find_spec("fused_weight_gradient_mlp_cuda") is None:
        return ["model.gradient_accumulation_fusion=true (fusions=te) with host=bridge needs Apex for the head"]
    if model.get("gradient_accumulation_fusion") and not (te and model.megatron_amp_O2):
        return [
            "model.gradient_accumulation_fusion=true (fusions=te) needs Transformer Engine, and bfloat16 with float32 "
            "main weights: precision=bf16 or fp8_hybrid"
        ]
    return []


def _packing_problems(config: TrainConfig, model: DictConfig, *, cuda: bool) -> list[str]:
    """Settings that cannot work when pairs share rows, with the reason."""
    window = window_of(model)
    embedding = model.get("position_embedding_type", "learned_absolute")
    return [
        message
        for wrong, message in (
            (
                model.get("context_parallel_size", 1) > 1,
                "model.context_parallel_size > 1: a row of packed pairs cannot be split over context-parallel ranks",
            ),
            (
                embedding not in ("rope", "learned_absolute", "none"),
                f"model.position_embedding_type={embedding}: positions restart within a row of packed pairs, "
                "which only rope and learned_absolute support",
            ),
            (
                bool(window),
                f"model.window_size: the sliding window of {window} tokens is shorter than "
                f"model.data.seq_length={config.model.data.seq_length}; set model.data.seq_length={window}",
            ),
            (
                bool(model.get("attention_dropout")),
                "model.attention_dropout: not supported for packed pairs; set +model.attention_dropout=0",
            ),
            (
                bool(model.get("enable_cuda_graph")),
                "model.enable_cuda_graph: rows of packed pairs differ in length and structure from step to step",
            ),
        )
        if wrong
    ]
