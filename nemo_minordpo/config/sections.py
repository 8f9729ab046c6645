"""The typed sections: every setting, its unit and its default."""

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING


@dataclass
class DPOSection:
    """`model.dpo`: the objective."""

    ref_policy_kl_penalty: float = MISSING  # beta, per nat; required, > 0
    preference_loss: str = "minordpo"
    dpop_lambda: float = 50.0  # dpop only, >= 0
    gt_reward_scale: float = 1.0  # rpo_* only: times (chosen_reward - rejected_reward)
    preference_loss_weight: float = 1.0
    sft_loss_weight: float = 0.0  # times -log pi(chosen), summed over its tokens
    reference_log_probs: str = "cached"  # evaluated once and kept; "live": at every step, with a swap of weights
    reference_cache: str | None = None  # folder of kept ones; null = reference_cache beside the run folder


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
    packed_sequence_size: int = 4096  # most tokens of a row, in which many pairs lie; at least those of any one pair
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
class LoraSection:
    """`model.peft.lora_tuning`: what the adapters look like; null = as those that training starts from."""

    target_modules: list[str] | None = None  # names of config/lora.py, such as "all"; null for new ones: attention_qkv
    adapter_dim: int | None = None  # rank; null for new adapters: 32
    alpha: int | None = None  # adapters are scaled by alpha / adapter_dim; null for new adapters: adapter_dim
    adapter_dropout: float | None = None  # of this run; null for new adapters: 0


@dataclass
class PeftSection:
    """`model.peft`: train adapters instead of the weights; the reference is the model that the run starts from."""

    peft_scheme: str = "none"  # or "lora"
    restore_from_path: str | None = None  # .nemo of adapters to start from; null = new ones, which change nothing yet
    lora_tuning: LoraSection = field(default_factory=LoraSection)


@dataclass
class ModelSection:
    """`model`: layout, precision, objective. Null = as the checkpoint's own configuration says."""

    micro_batch_size: int = 1  # rows; many pairs lie in one, see data.packed_sequence_size
    global_batch_size: int = MISSING  # pairs of one optimizer step, over all ranks
    tensor_model_parallel_size: int = 1
    pipeline_model_parallel_size: int = 1
    sequence_parallel: bool = False
    megatron_amp_O2: bool = False
    transformer_engine: bool | None = None
    fp8: bool | None = None  # matrix products of Transformer Engine's layers
    fp8_hybrid: bool | None = None  # E4M3 forward, E5M2 backward
    fp8_margin: int | None = None  # powers of two below the largest value that FP8 holds
    fp8_amax_history_len: int | None = None  # steps whose largest values decide a scale
    fp8_amax_compute_algo: str | None = None  # "max" or "most_recent"
    apply_rope_fusion: bool | None = None  # the kernels of fusions=te; on CPUs this project's own take their place
    bias_activation_fusion: bool | None = None
    gradient_accumulation_fusion: bool | None = None
    activations_checkpoint_granularity: str | None = None
    activations_checkpoint_method: str | None = None
    activations_checkpoint_num_layers: int | None = None
    seed: int = 1234  # of the data order, and of dropout where the checkpoint has any
    dpo: DPOSection = field(default_factory=DPOSection)
    data: DataSection = field(default_factory=DataSection)
    optim: OptimSection = field(default_factory=OptimSection)
    peft: PeftSection = field(default_factory=PeftSection)


@dataclass
class WatchSection:
    """`trainer.dpo.watch`: what the model answers while it is trained."""

    interval: int = 0  # steps between looks, beside one before the first step; 0 = none
    num_prompts: int = 16  # the first ones of the validation pairs, or of the training pairs where there are none
    max_new_tokens: int = 128  # of an answer; 24 can be seen to repeat


@dataclass
class TrainerDPOSection:
    """`trainer.dpo`: the loop."""

    max_epochs: int = 1
    max_steps: int = -1  # -1 = as many as the epochs have
    val_check_interval: int = 0  # steps; 0 = once, at the end
    limit_val_batches: int | None = None  # null = the whole validation set
    save_interval: int = 0  # steps; 0 = once, at the end
    gradient_clip_val: float = 1.0  # norm over all parameters; 0 = no clipping
    save_nemo: bool = True  # write model.nemo at the end
    watch: WatchSection = field(default_factory=WatchSection)


@dataclass
class TrainerSection:
    """`trainer`: what Lightning's Trainer is built with."""

    num_nodes: int = 1
    devices: int = 1  # ranks a node
    accelerator: str = "auto"  # "gpu" where there is one, else "cpu"
    precision: str = "32-true"
    dpo: TrainerDPOSection = field(default_factory=TrainerDPOSection)


@dataclass
class CheckpointSection:
    """`exp_manager.checkpoint_callback_params`: which checkpoints stay on the disk."""

    keep_last: int = 2  # the newest; the last but one is there in case that the last is damaged
    save_top_k: int = 0  # beside them, the best ones by `monitor`
    monitor: str = "loss"  # a metric of the validation after the step of the checkpoint
    mode: str = "min"  # or "max"


@dataclass
class RunSection:
    """`exp_manager`: the run folder, the loggers, and what ends a run early."""

    explicit_log_dir: str = MISSING  # the run folder; the same command resumes it
    create_tensorboard_logger: bool = True
    create_wandb_logger: bool = False
    wandb_logger_kwargs: dict[str, Any] = field(default_factory=dict)
    max_time_per_run: str | None = None  # DD:HH:MM:SS; then a checkpoint is saved and the run can be resumed
    # DD:HH:MM:SS; a rank ends when no step, validation batch or checkpoint ended for so long; null = never
    max_time_without_progress: str | None = "00:01:00:00"
    checkpoint_callback_params: CheckpointSection = field(default_factory=CheckpointSection)


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
