"""The sections other than `model` (trainer, run folder, starting checkpoint), and the whole configuration."""

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from nemo_minordpo.config.model_sections import ModelSection
from nemo_minordpo.config.setting import Resume, setting


@dataclass
class WatchSection:
    """`trainer.dpo.watch`: the model's answers during training."""

    interval: int = setting(
        0, "steps between samples of the model's answers; the first is taken before the first step",
        unit="steps", minimum=0, special={0: "none"}, resume=Resume.FREE,
    )  # fmt: skip
    num_prompts: int = setting(
        16, "number of prompts, taken from the start of the validation pairs, or of the training pairs without any",
        minimum=1,
    )  # fmt: skip
    max_new_tokens: int = setting(
        128, "longest answer", unit="tokens", minimum=24, why="repetition cannot be detected in shorter answers"
    )


@dataclass
class TrainerDPOSection:
    """`trainer.dpo`: the loop."""

    max_epochs: int = setting(1, "passes over the training pairs", minimum=1, aliases=("num_train_epochs",))
    max_steps: int = setting(
        -1,
        "largest number of optimizer steps; the run ends there even within an epoch",
        unit="steps",
        minimum=1,
        special={-1: "no limit"},
    )
    val_check_interval: int = setting(
        0, "steps between validations",
        unit="steps", minimum=0, special={0: "once, at the end"}, resume=Resume.FREE, aliases=("eval_steps",),
    )  # fmt: skip
    limit_val_batches: int | None = setting(
        None, "batches per validation", minimum=1, special={None: "the whole set"}, resume=Resume.FREE
    )
    save_interval: int = setting(
        0, "steps between checkpoints",
        unit="steps", minimum=0, special={0: "once, at the end"}, resume=Resume.FREE, aliases=("save_steps",),
    )  # fmt: skip
    gradient_clip_val: float = setting(
        1.0, "largest gradient norm, over all parameters; larger gradients are scaled down",
        minimum=0, special={0: "no clipping"}, aliases=("max_grad_norm",),
    )  # fmt: skip
    save_nemo: bool = setting(True, "write `model.nemo` at the end", resume=Resume.FREE)
    watch: WatchSection = field(default_factory=WatchSection)


@dataclass
class TrainerSection:
    """`trainer`: settings of Lightning's Trainer."""

    num_nodes: int = setting(1, "machines", minimum=1, resume=Resume.FREE)
    devices: int = setting(1, "ranks per machine", minimum=1, resume=Resume.FREE)
    accelerator: str = setting(
        "auto", "`auto`: `gpu` if there is one, else `cpu`", choices=("auto", "cpu", "gpu"), resume=Resume.FREE
    )
    precision: str = setting(
        "32-true", "set by the group `precision`, together with the settings that go with it",
        choices=("32-true", "bf16-mixed", "16-mixed"), reference=True,
    )  # fmt: skip
    dpo: TrainerDPOSection = field(default_factory=TrainerDPOSection)


@dataclass
class CheckpointSection:
    """`exp_manager.checkpoint_callback_params`: which checkpoints stay on disk."""

    keep_last: int = setting(
        2, "number of newest checkpoints to keep; with more than one, a damaged checkpoint does not lose the run",
        minimum=1, resume=Resume.FREE,
    )  # fmt: skip
    save_top_k: int = setting(
        0, "number of best checkpoints, by `monitor`, to keep in addition to the newest", minimum=0, resume=Resume.FREE
    )
    monitor: str = setting("loss", "validation metric, at the checkpoint's step", resume=Resume.FREE)
    mode: str = setting(
        "min", "whether the best value of `monitor` is the smallest or the largest",
        choices=("min", "max"), resume=Resume.FREE,
    )  # fmt: skip


@dataclass
class RunSection:
    """`exp_manager`: the run folder, the loggers, and time limits."""

    explicit_log_dir: str = setting(
        MISSING, "the run folder; the same command resumes the run", resume=Resume.FREE, aliases=("output_dir",)
    )
    round: int = setting(
        1, "number of the round, if the run is one of several rounds of answers, pairs and training; for the report",
        minimum=1, is_variant=True,
    )  # fmt: skip
    create_tensorboard_logger: bool = setting(True, "log to TensorBoard", resume=Resume.FREE)
    create_wandb_logger: bool = setting(False, "log to Weights & Biases", resume=Resume.FREE)
    wandb_logger_kwargs: dict[str, Any] = setting(
        {}, "arguments of `wandb.init`, such as `project` and `name`", resume=Resume.FREE
    )
    max_time_per_run: str | None = setting(
        None, "time limit of one attempt; a checkpoint is then saved, and the same command resumes the run",
        is_duration=True, special={None: "no limit"}, resume=Resume.FREE, aliases=("max_time",),
    )  # fmt: skip
    max_time_without_progress: str | None = setting(
        "00:01:00:00", "a rank exits if no step, validation batch or checkpoint is completed for this long",
        is_duration=True, above=0, special={None: "no limit"}, resume=Resume.FREE,
    )  # fmt: skip
    checkpoint_callback_params: CheckpointSection = field(default_factory=CheckpointSection)


@dataclass
class PretrainedSection:
    """`pretrained_checkpoint`: the model to start from, which is also the reference unless another is named."""

    restore_from_path: str = setting(
        MISSING,
        "`.nemo` file or extracted folder of the model to start from; with `host=bridge`, its Hugging Face folder",
        resume=Resume.SAME_CONTENTS,
    )
    reference_from_path: str | None = setting(
        None,
        "another model to use as the reference; run `minordpo reference` with the same settings first",
        special={None: "the model to start from"}, resume=Resume.SAME_CONTENTS,
        aliases=("ref_model", "reference_model"),
    )  # fmt: skip


@dataclass
class TrainConfig:
    """Everything that `minordpo train` reads."""

    host: str = setting(
        "aligner",
        "the framework that builds and runs the model: `aligner`, NeMo-Aligner, which starts from a `.nemo`; `bridge`, "
        "Megatron-Bridge, which starts from a Hugging Face folder",
        choices=("aligner", "bridge"),
    )
    pretrained_checkpoint: PretrainedSection = field(default_factory=PretrainedSection)
    trainer: TrainerSection = field(default_factory=TrainerSection)
    exp_manager: RunSection = field(default_factory=RunSection)
    model: ModelSection = field(default_factory=ModelSection)
    checkpoint_overrides: dict[str, Any] = setting(
        {}, "changes to the checkpoint's own model configuration, given as `+model.KEY=VALUE`",
        reference=True,
    )  # fmt: skip
