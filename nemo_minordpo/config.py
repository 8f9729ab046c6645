"""The training configuration: typed sections, the only home of defaults and of range checks.

Names are those of NeMo-Aligner's DPO (`model.dpo.ref_policy_kl_penalty` is beta). The YAML files in conf/ hold what
differs from here; Hydra composes them with the command line; :func:`load` refuses what no section knows.
"""

import difflib
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any

from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

CONF = Path(__file__).parent / "conf"


@dataclass
class DPOSection:
    """`model.dpo`: the objective."""

    ref_policy_kl_penalty: float = MISSING  # beta, per nat; required, > 0
    preference_loss: str = "minordpo"
    dpop_lambda: float = 50.0  # dpop only, >= 0
    gt_reward_scale: float = 1.0  # rpo_* only: times (chosen_reward - rejected_reward)
    preference_loss_weight: float = 1.0
    sft_loss_weight: float = 0.0  # times -log pi(chosen), summed over its tokens


@dataclass
class DataPrefixSection:
    """`model.data.data_prefix`: jsonl files or glob patterns."""

    train: list[str] = MISSING
    validation: list[str] = field(default_factory=list)


@dataclass
class DataSection:
    """`model.data`: the pairs."""

    data_prefix: DataPrefixSection = field(default_factory=DataPrefixSection)
    seq_length: int = 1024  # tokens of prompt and response together; longer pairs are left out and counted
    append_eos: bool = True  # end every response with the tokenizer's EOS, so that the model learns to stop
    invalid_pairs: str = "refuse"  # or "drop": start without the pairs that cannot be used
    default_chosen_reward: float = 1.0  # rpo_* only, for pairs without rewards of their own
    default_rejected_reward: float = 0.0


@dataclass
class ScheduleSection:
    """`model.optim.sched`: the learning rate over the whole run; the first step has a positive one."""

    name: str = "linear"  # to min_lr at the end; or "cosine", or "constant"
    warmup_ratio: float = 0.1  # of the run's steps
    warmup_steps: int | None = None  # instead of warmup_ratio
    min_lr: float = 0.0


@dataclass
class OptimSection:
    """`model.optim`: the optimizer, by NeMo's names."""

    name: str = "adamw"
    lr: float = MISSING
    weight_decay: float = 0.0
    betas: list[float] | None = None  # Adam only; null = the optimizer's own
    momentum: float | None = None  # sgd only
    sched: ScheduleSection = field(default_factory=ScheduleSection)


@dataclass
class ModelSection:
    """`model`: layout, precision, objective. Null = as the checkpoint's own configuration says."""

    micro_batch_size: int = 1  # pairs
    global_batch_size: int = MISSING  # pairs of one optimizer step, over all ranks
    tensor_model_parallel_size: int = 1
    pipeline_model_parallel_size: int = 1
    sequence_parallel: bool = False
    megatron_amp_O2: bool = False
    transformer_engine: bool | None = None
    activations_checkpoint_granularity: str | None = None
    activations_checkpoint_method: str | None = None
    activations_checkpoint_num_layers: int | None = None
    seed: int = 1234  # of the data order, and of dropout where the checkpoint has any
    dpo: DPOSection = field(default_factory=DPOSection)
    data: DataSection = field(default_factory=DataSection)
    optim: OptimSection = field(default_factory=OptimSection)


@dataclass
class TrainerDPOSection:
    """`trainer.dpo`: the loop."""

    max_epochs: int = 1
    max_steps: int = -1  # -1 = as many as the epochs have
    val_check_interval: int = 0  # steps; 0 = once, at the end
    limit_val_batches: int | None = None  # null = the whole validation set
    save_interval: int = 0  # steps; 0 = once, at the end
    keep_checkpoints: int = 2  # newest ones that stay on disk
    gradient_clip_val: float = 1.0  # norm over all parameters; 0 = no clipping
    save_nemo: bool = True  # write model.nemo at the end


@dataclass
class TrainerSection:
    """`trainer`: what Lightning's Trainer is built with."""

    num_nodes: int = 1
    devices: int = 1  # ranks a node
    accelerator: str = "auto"  # "gpu" where there is one, else "cpu"
    precision: str = "32-true"
    dpo: TrainerDPOSection = field(default_factory=TrainerDPOSection)


@dataclass
class RunSection:
    """`exp_manager`: the run folder and the loggers."""

    explicit_log_dir: str = MISSING  # the run folder; the same command resumes it
    create_tensorboard_logger: bool = True
    create_wandb_logger: bool = False
    wandb_logger_kwargs: dict[str, Any] = field(default_factory=dict)
    max_time_per_run: str | None = None  # DD:HH:MM:SS; then a checkpoint is saved and the run can be resumed


@dataclass
class PretrainedSection:
    """`pretrained_checkpoint`: what training starts from; it is the reference, too."""

    restore_from_path: str = MISSING  # .nemo file or extracted folder


@dataclass
class TrainConfig:
    """Everything that `minordpo train` reads."""

    pretrained_checkpoint: PretrainedSection = field(default_factory=PretrainedSection)
    trainer: TrainerSection = field(default_factory=TrainerSection)
    exp_manager: RunSection = field(default_factory=RunSection)
    model: ModelSection = field(default_factory=ModelSection)
    # keys of the checkpoint's own model configuration that the command line changes: +model.KEY=VALUE
    checkpoint_overrides: dict[str, Any] = field(default_factory=dict)


OPTIMIZERS = ("adam", "adamw", "sgd", "fused_adam", "mcore_distributed_optim", "distributed_fused_adam")
PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")
# What may differ between the runs of one run folder: where it runs, how it reports and how often it saves.
NOT_IDENTITY = (
    "trainer.num_nodes", "trainer.devices", "trainer.accelerator", "trainer.dpo.save_interval",
    "trainer.dpo.keep_checkpoints", "trainer.dpo.val_check_interval", "trainer.dpo.limit_val_batches",
    "trainer.dpo.save_nemo", "exp_manager.explicit_log_dir", "exp_manager.create_tensorboard_logger",
    "exp_manager.create_wandb_logger", "exp_manager.wandb_logger_kwargs", "exp_manager.max_time_per_run",
    "model.micro_batch_size", "model.tensor_model_parallel_size", "model.pipeline_model_parallel_size",
    "model.sequence_parallel", "model.activations_checkpoint_granularity", "model.activations_checkpoint_method",
    "model.activations_checkpoint_num_layers",
    "pretrained_checkpoint.restore_from_path", "model.data.data_prefix",  # their contents are compared, by sha256
)  # fmt: skip


def compose(overrides: list[str]) -> DictConfig:
    """Compose conf/train.yaml with the command line's overrides.

    Raises:
        ValueError: an override that Hydra refuses, with its reason.
    """
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.core.config_store import ConfigStore
    from hydra.errors import HydraException

    ConfigStore.instance().store("schema", TrainConfig)
    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            return hydra_compose("train", overrides=overrides)
    except HydraException as error:
        raise ValueError(_one_message(error)) from error


def load(composed: DictConfig, *, loss_names: tuple[str, ...]) -> TrainConfig:
    """Typed configuration from a composed one.

    Args:
        composed: as :func:`compose` or a run folder's `config.yaml` gives it.
        loss_names: what `model.dpo.preference_loss` may be.

    Raises:
        ValueError: every fault that can be seen without opening a file, one a line.
    """
    plain: Any = OmegaConf.to_container(composed, resolve=True)
    overrides = plain.setdefault("checkpoint_overrides", {})
    known = {item.name for item in fields(ModelSection)}
    for key in [key for key in plain.get("model", {}) if key not in known]:
        overrides[key] = plain["model"].pop(key)
    problems = _unknown_keys(plain, TrainConfig, prefix="")
    if problems:
        raise ValueError("\n".join(problems))
    try:
        merged = OmegaConf.merge(OmegaConf.structured(TrainConfig), plain)
        missing = sorted(str(key) for key in OmegaConf.missing_keys(merged))
        if missing:
            raise ValueError("\n".join(f"{key} is required: give {key}=VALUE" for key in missing))
        config = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        raise ValueError(_one_message(error)) from error
    assert isinstance(config, TrainConfig)
    problems = _problems(config, loss_names)
    if problems:
        raise ValueError("\n".join(problems))
    return config


def identity(config: TrainConfig) -> dict[str, Any]:
    """Flat settings that decide what a run computes: two runs of one folder must agree in them."""
    flat = _flatten(OmegaConf.to_container(OmegaConf.structured(config)), prefix="")
    return {key: value for key, value in flat.items() if not key.startswith(NOT_IDENTITY)}


def duration_in_seconds(text: str) -> int:
    """Seconds of a DD:HH:MM:SS time.

    Raises:
        ValueError: it is not one.
    """
    parts = text.split(":")
    if len(parts) != 4 or not all(part.isdigit() for part in parts):
        raise ValueError(f"exp_manager.max_time_per_run={text!r}: DD:HH:MM:SS expected, such as 00:03:50:00")
    days, hours, minutes, seconds = map(int, parts)
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds


def closest(name: str, known: tuple[str, ...] | list[str]) -> str:
    """A hint for a misspelt name: `; did you mean 'x'?`, or nothing."""
    match = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {match[0]!r}?" if match else ""


def _problems(config: TrainConfig, loss_names: tuple[str, ...]) -> list[str]:
    model, loop = config.model, config.trainer.dpo
    return [
        message
        for wrong, message in (
            *_objective_checks(model.dpo, loss_names),
            *_optimizer_checks(model.optim),
            *_layout_checks(config),
            (model.data.seq_length < 2, "model.data.seq_length must be >= 2 tokens"),
            (not model.data.data_prefix.train, "model.data.data_prefix.train is empty: name at least one jsonl file"),
            (
                model.data.invalid_pairs not in ("refuse", "drop"),
                f"model.data.invalid_pairs={model.data.invalid_pairs!r}: 'refuse' or 'drop' expected",
            ),
            (model.seed < 1, "model.seed must be >= 1 (NeMo refuses others)"),
            (loop.max_epochs < 1, "trainer.dpo.max_epochs must be >= 1"),
            (loop.max_steps < -1 or loop.max_steps == 0, "trainer.dpo.max_steps must be >= 1, or -1 for no limit"),
            (loop.val_check_interval < 0, "trainer.dpo.val_check_interval must be >= 0 steps"),
            (loop.save_interval < 0, "trainer.dpo.save_interval must be >= 0 steps"),
            (loop.keep_checkpoints < 1, "trainer.dpo.keep_checkpoints must be >= 1"),
            (loop.gradient_clip_val < 0, "trainer.dpo.gradient_clip_val must be >= 0"),
            (
                loop.limit_val_batches is not None and loop.limit_val_batches < 1,
                "trainer.dpo.limit_val_batches must be >= 1, or null for the whole set",
            ),
        )
        if wrong
    ] + _duration_problem(config.exp_manager.max_time_per_run)


def _objective_checks(dpo: DPOSection, loss_names: tuple[str, ...]) -> list[tuple[bool, str]]:
    name = dpo.preference_loss
    return [
        (
            not dpo.ref_policy_kl_penalty > 0,
            f"model.dpo.ref_policy_kl_penalty={dpo.ref_policy_kl_penalty}: beta must be > 0 (at 0 nothing is learnt)",
        ),
        (
            name not in loss_names,
            f"model.dpo.preference_loss={name!r} is unknown; known: {', '.join(loss_names)}"
            + closest(name, list(loss_names)),
        ),
        (dpo.dpop_lambda < 0, f"model.dpo.dpop_lambda={dpo.dpop_lambda} must be >= 0"),
        (dpo.preference_loss_weight < 0, "model.dpo.preference_loss_weight must be >= 0"),
        (dpo.sft_loss_weight < 0, "model.dpo.sft_loss_weight must be >= 0"),
        (
            dpo.preference_loss_weight == 0 and dpo.sft_loss_weight == 0,
            "model.dpo.preference_loss_weight and model.dpo.sft_loss_weight are both 0: there is no loss",
        ),
    ]


def _optimizer_checks(optim: OptimSection) -> list[tuple[bool, str]]:
    sched = optim.sched
    names = ("linear", "cosine", "constant")
    return [
        (not optim.lr > 0, f"model.optim.lr={optim.lr} must be > 0"),
        (
            optim.name not in OPTIMIZERS,
            f"model.optim.name={optim.name!r} is unknown; known: {', '.join(OPTIMIZERS)}"
            + closest(optim.name, OPTIMIZERS),
        ),
        (optim.weight_decay < 0, "model.optim.weight_decay must be >= 0"),
        (
            optim.betas is not None and not (len(optim.betas) == 2 and all(0 <= b < 1 for b in optim.betas)),
            f"model.optim.betas={optim.betas}: two numbers in [0, 1) expected",
        ),
        (
            optim.betas is not None and optim.name == "sgd",
            "model.optim.betas is Adam's: give model.optim.betas=null with sgd",
        ),
        (optim.momentum is not None and optim.name != "sgd", "model.optim.momentum is for model.optim.name=sgd only"),
        (
            sched.name not in names,
            f"model.optim.sched.name={sched.name!r} is unknown; known: {', '.join(names)}" + closest(sched.name, names),
        ),
        (not 0 <= sched.warmup_ratio < 1, f"model.optim.sched.warmup_ratio={sched.warmup_ratio} must be in [0, 1)"),
        (sched.warmup_steps is not None and sched.warmup_steps < 0, "model.optim.sched.warmup_steps must be >= 0"),
        (
            not 0 <= sched.min_lr <= optim.lr,
            f"model.optim.sched.min_lr={sched.min_lr} must be between 0 and model.optim.lr={optim.lr}",
        ),
    ]


def _layout_checks(config: TrainConfig) -> list[tuple[bool, str]]:
    model, trainer = config.model, config.trainer
    sizes = {
        "trainer.num_nodes": trainer.num_nodes,
        "trainer.devices": trainer.devices,
        "model.tensor_model_parallel_size": model.tensor_model_parallel_size,
        "model.pipeline_model_parallel_size": model.pipeline_model_parallel_size,
        "model.micro_batch_size": model.micro_batch_size,
        "model.global_batch_size": model.global_batch_size,
    }
    checks = [(value < 1, f"{key}={value} must be >= 1") for key, value in sizes.items()]
    checks += [
        (
            trainer.accelerator not in ("auto", "cpu", "gpu"),
            f"trainer.accelerator={trainer.accelerator!r}: auto, cpu or gpu expected",
        ),
        (
            trainer.precision not in PRECISIONS,
            f"trainer.precision={trainer.precision!r} is unknown; known: {', '.join(PRECISIONS)}",
        ),
    ]
    if any(wrong for wrong, _ in checks):
        return checks
    ranks = trainer.num_nodes * trainer.devices
    model_ranks = model.tensor_model_parallel_size * model.pipeline_model_parallel_size
    split = f"tensor_model_parallel_size x pipeline_model_parallel_size = {model_ranks}"
    checks.append((ranks % model_ranks != 0, f"{ranks} ranks (num_nodes x devices) cannot be divided by {split}"))
    if ranks % model_ranks == 0:
        step = model.micro_batch_size * (ranks // model_ranks)
        below = model.global_batch_size // step * step
        nearest = f"{below} or {below + step}" if below else str(step)
        checks.append(
            (
                model.global_batch_size % step != 0,
                f"model.global_batch_size={model.global_batch_size} must be a multiple of micro_batch_size x "
                f"data-parallel size = {step}: take {nearest}",
            )
        )
    return checks


def _duration_problem(text: str | None) -> list[str]:
    try:
        if text is not None:
            duration_in_seconds(text)
    except ValueError as error:
        return [str(error)]
    return []


def _unknown_keys(values: dict[str, Any], section: type, prefix: str) -> list[str]:
    problems = []
    known = {item.name: item for item in fields(section)}
    for key, value in values.items():
        if key not in known:
            problems.append(f"{prefix}{key} is not a setting{closest(str(key), list(known))}")
            continue
        inner = known[key].type
        if isinstance(inner, type) and is_dataclass(inner) and isinstance(value, dict):
            problems += _unknown_keys(value, inner, f"{prefix}{key}.")
    return problems


def _flatten(value: Any, prefix: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        return {prefix.rstrip("."): value}
    flat: dict[str, Any] = {}
    for key, inner in value.items():
        flat.update(_flatten(inner, f"{prefix}{key}."))
    return flat


def _one_message(error: Exception) -> str:
    """Hydra's message without its search path, and OmegaConf's reason, which Hydra hides in the cause."""
    lines = str(error).partition("Config search path")[0].strip().splitlines()
    if error.__cause__ is not None:
        lines.insert(1, str(error.__cause__).splitlines()[0])
    return "; ".join(dict.fromkeys(line.strip() for line in lines if line.strip()))
