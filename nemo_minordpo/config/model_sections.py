"""The sections of `model`: objective, data, optimizer, adapters, layout."""

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from nemo_minordpo import DEFAULT_SEED
from nemo_minordpo.config.lora import DEFAULT_RANK, DEFAULT_TARGETS, LORA_TARGETS
from nemo_minordpo.config.losses import LOSS_NAMES, SFT, WITH_REFERENCE
from nemo_minordpo.config.setting import Resume, setting

RPO = ("rpo_sq", "rpo_bwd_kl", "rpo_fwd_kl")  # they read ground-truth rewards
_SIGMOID = ("dpo", "dpop", "minordpo", "robust", "bdpo", "dpo_shift", "simpo")
_CHECKPOINTS = {None: "as in the checkpoint's own configuration"}
_STARTING_ADAPTERS = "as in the adapters to start from; for new adapters"


@dataclass
class DPOSection:
    """`model.dpo`: the objective."""

    ref_policy_kl_penalty: float = setting(
        MISSING, "beta, the strength of the pull towards the reference; the paper tries 0.02 to 0.2",
        unit="per nat", above=0, why="0 learns nothing", axis=True, short="beta",
        aliases=("beta", "kl_penalty", "pref_beta"), losses=tuple(name for name in LOSS_NAMES if name != SFT),
    )  # fmt: skip
    # a name, or a mapping of names to weights
    preference_loss: Any = setting(
        "minordpo", "the loss; your own function is imported from the current folder or an installed package",
        choices=LOSS_NAMES, own="package.module:function", is_mix=True, axis=True, short="",
        aliases=("loss", "loss_type", "pref_loss"),
    )  # fmt: skip
    dpop_lambda: float = setting(
        50.0, "lambda, the weight of the penalty on chosen responses below the reference; Pal et al. 2024 use 50",
        minimum=0, losses=("dpop",),
    )  # fmt: skip
    minordpo_floor: float = setting(
        0.0, "the rejected response is pushed down until its log-ratio falls to this; the paper has 0",
        unit="nats", losses=("minordpo",), is_variant=True,
    )  # fmt: skip
    label_smoothing: float = setting(
        0.0, "probability that the two responses of a pair are in the wrong order; `dpo` with it is conservative DPO",
        minimum=0, below=0.5, losses=_SIGMOID, is_variant=True, aliases=("dpo_label_smoothing",),
    )  # fmt: skip
    bdpo_lambda: float = setting(
        0.5, "weight of the policy in the mixture with the reference; near 1 it is DPO",
        above=0, below=1, losses=("bdpo",),
    )  # fmt: skip
    dpo_shift_lambda: float = setting(
        0.75, "factor of the rejected log-ratio; near 1 it is DPO; Yang et al. 2025 try 0.5 to 0.95",
        above=0, below=1, losses=("dpo_shift",),
    )  # fmt: skip
    simpo_gamma: float = setting(
        0.5, "the margin that a pair should reach, beta times the difference per token", losses=("simpo",)
    )
    gt_reward_scale: float = setting(1.0, "factor of `chosen_reward - rejected_reward`", losses=RPO)
    preference_average_log_probs: bool = setting(
        False, "divide the log-ratios that the loss reads by the tokens of the response: length-normalised DPO",
        losses=WITH_REFERENCE, is_variant=True,
    )  # fmt: skip
    preference_loss_weight: float = setting(1.0, "factor of the preference loss", minimum=0)
    sft_loss_weight: float = setting(
        0.0, "weight of the loss `sft`, added to the preference loss",
        minimum=0, is_variant=True, aliases=("pref_ftx", "rpo_alpha"),
    )  # fmt: skip
    sft_average_log_probs: bool | None = setting(
        None, "divide `log pi(chosen)` in the loss `sft` by the tokens of the response",
        special={None: "as `preference_average_log_probs`"}, losses=(SFT,),
    )  # fmt: skip
    reference_log_probs: str = setting(
        "cached", "`cached`: evaluated once, before the first step; `live`: at every step, by swapping weights",
        choices=("cached", "live"), losses=WITH_REFERENCE, aliases=("precompute_ref_log_probs",),
    )  # fmt: skip
    reference_cache: str | None = setting(
        None, "folder of the reference's cached log-probabilities; any number of runs can share it",
        special={None: "`reference_cache` next to the run folder"}, losses=WITH_REFERENCE, resume=Resume.FREE,
    )  # fmt: skip


@dataclass
class DataPrefixSection:
    """`model.data.data_prefix`: jsonl files or glob patterns."""

    train: list[str] = setting(MISSING, "files of training pairs", nonempty="jsonl file", resume=Resume.SAME_CONTENTS)
    validation: list[str] = setting([], "files of validation pairs", resume=Resume.SAME_CONTENTS)


@dataclass
class DataSection:
    """`model.data`: the pairs."""

    data_prefix: DataPrefixSection = field(default_factory=DataPrefixSection)
    seq_length: int = setting(
        1024, "largest length of a prompt plus a response; longer pairs are left out and counted",
        unit="tokens", minimum=2, reference=True,
        aliases=("max_length", "max_seq_length", "encoder_seq_length", "cutoff_len"),
    )  # fmt: skip
    packed_sequence_size: int = setting(
        4096, "longest row; a row packs many pairs, and every pair must fit",
        unit="tokens", minimum=2, resume=Resume.FREE,
    )  # fmt: skip
    append_eos: bool = setting(
        True, "end every response with the tokenizer's end-of-text token, so that the model learns to stop"
    )
    invalid_pairs: str = setting(
        "refuse", "if pairs cannot be used, `refuse` to start or `drop` them", choices=("refuse", "drop")
    )
    default_chosen_reward: float = setting(1.0, "reward of chosen responses that have none in the data", losses=RPO)
    default_rejected_reward: float = setting(0.0, "reward of rejected responses that have none in the data", losses=RPO)


@dataclass
class ScheduleSection:
    """`model.optim.sched`: the learning rate over the whole run; it is positive from the first step."""

    name: str = setting(
        "linear", "decay from `model.optim.lr` to `min_lr` at the end",
        choices=("linear", "cosine", "constant"), aliases=("lr_scheduler_type",),
    )  # fmt: skip
    warmup_ratio: float = setting(0.1, "fraction of the run's steps used for warm-up", minimum=0, below=1)
    warmup_steps: int | None = setting(
        None, "warm-up steps", unit="steps", minimum=0, special={None: "use `warmup_ratio`"}
    )
    min_lr: float = setting(0.0, "final learning rate; at most `model.optim.lr`", minimum=0)


@dataclass
class OptimSection:
    """`model.optim`: the optimizer, by NeMo's names."""

    name: str = setting(
        "adamw", "`mcore_distributed_optim` and `distributed_fused_adam` split their state over the ranks",
        choices=("adam", "adamw", "sgd", "fused_adam", "mcore_distributed_optim", "distributed_fused_adam"),
    )  # fmt: skip
    lr: float = setting(
        1e-6, "peak learning rate; the paper tries 1e-6 and 1e-5", above=0, axis=True, aliases=("learning_rate",)
    )
    weight_decay: float = setting(0.0, "each step subtracts this times the learning rate times the weight", minimum=0)
    betas: list[float] | None = setting(
        [0.9, 0.999], "Adam's decay rates, for the mean of the gradients and of their squares",
        length=2, minimum=0, below=1, special={None: "the optimizer's default; required with sgd"},
    )  # fmt: skip
    momentum: float | None = setting(None, "momentum of sgd", special={None: "none"})
    sched: ScheduleSection = field(default_factory=ScheduleSection)


@dataclass
class LoraSection:
    """`model.peft.lora_tuning`: the adapters."""

    target_modules: list[str] | None = setting(
        None, "linear layers that get adapters", choices=tuple(LORA_TARGETS), nonempty="linear layer",
        special={None: f"{_STARTING_ADAPTERS}: {', '.join(DEFAULT_TARGETS)}"},
    )  # fmt: skip
    adapter_dim: int | None = setting(
        None,
        "rank of the adapters",
        minimum=1,
        special={None: f"{_STARTING_ADAPTERS}: {DEFAULT_RANK}"},
        aliases=("lora_r", "lora_rank"),
    )
    alpha: int | None = setting(
        None, "adapters are scaled by alpha / adapter_dim",
        minimum=1, special={None: f"{_STARTING_ADAPTERS}: adapter_dim"}, aliases=("lora_alpha",),
    )  # fmt: skip
    adapter_dropout: float | None = setting(
        None, "dropout of the adapters, in this run", minimum=0, below=1, special={None: f"{_STARTING_ADAPTERS}: 0"}
    )


@dataclass
class PeftSection:
    """`model.peft`: train adapters instead of the weights; the reference is the model at the start of the run."""

    peft_scheme: str = setting("none", "`lora`: train adapters", choices=("none", "lora"))
    restore_from_path: str | None = setting(
        None, "`.nemo` of adapters to start from",
        special={None: "new adapters, which initially leave the model unchanged"}, resume=Resume.SAME_CONTENTS,
    )  # fmt: skip
    lora_tuning: LoraSection = field(default_factory=LoraSection)


@dataclass
class ModelSection:
    """`model`: layout, precision, objective."""

    micro_batch_size: int = setting(
        1, "rows per micro-batch; a row packs many pairs, see `model.data.packed_sequence_size`", choices=(1,),
        why="a micro-batch is one row of packed pairs; model.data.packed_sequence_size sets how many tokens it holds",
    )  # fmt: skip
    global_batch_size: int = setting(
        128, "pairs per optimizer step, over all ranks", unit="pairs", minimum=1,
        aliases=("per_device_train_batch_size", "gradient_accumulation_steps"),
    )  # fmt: skip
    tensor_model_parallel_size: int = setting(
        1, "number of ranks that each layer is split over", minimum=1, resume=Resume.FREE
    )
    pipeline_model_parallel_size: int = setting(
        1, "number of pipeline stages that the layers are split into", minimum=1, resume=Resume.FREE
    )
    virtual_pipeline_model_parallel_size: int | None = setting(
        None, "number of interleaved stages on each pipeline rank, which wait less for one another",
        special={None: "one stage"}, minimum=2, resume=Resume.FREE,
    )  # fmt: skip
    expert_model_parallel_size: int = setting(
        1, "number of data-parallel ranks that a mixture's experts are spread over", minimum=1, resume=Resume.FREE
    )
    moe_aux_loss_coeff: float = setting(
        0.0, "weight of the auxiliary loss that evens out how often a mixture uses each expert; 0, as in TRL: none",
        minimum=0,
    )  # fmt: skip
    sequence_parallel: bool = setting(
        False, "also split the activations that tensor parallelism alone replicates on every rank", resume=Resume.FREE
    )
    megatron_amp_O2: bool = setting(
        False, "keep float32 main weights in addition to those in low precision", reference=True
    )
    transformer_engine: bool | None = setting(
        None, "use Transformer Engine's layers", special=_CHECKPOINTS, reference=True
    )
    fp8: bool | None = setting(
        None, "use FP8 for the matrix products of Transformer Engine's layers", special=_CHECKPOINTS, reference=True
    )
    fp8_hybrid: bool | None = setting(
        None, "E4M3 in the forward pass, E5M2 in the backward pass", special=_CHECKPOINTS, reference=True
    )
    fp8_margin: int | None = setting(
        None,
        "margin, in powers of two, between the scaled values and the largest FP8 value",
        special=_CHECKPOINTS,
        reference=True,
    )
    fp8_amax_history_len: int | None = setting(
        None, "number of past steps whose largest values determine a scale",
        unit="steps", special=_CHECKPOINTS, reference=True,
    )  # fmt: skip
    fp8_amax_compute_algo: str | None = setting(
        None, "which of these values determines the scale: `max` or `most_recent`", special=_CHECKPOINTS, reference=True
    )
    apply_rope_fusion: bool | None = setting(
        None, "fused rotary embeddings, set by `fusions=te`; CPUs use this project's own kernel", special=_CHECKPOINTS
    )
    bias_activation_fusion: bool | None = setting(
        None, "fused bias and activation, set by `fusions=te`", special=_CHECKPOINTS
    )
    gradient_accumulation_fusion: bool | None = setting(
        None, "add weight gradients to the float32 main gradients within the matrix product, set by `fusions=te`",
        special=_CHECKPOINTS,
    )  # fmt: skip
    activations_checkpoint_granularity: str | None = setting(
        None, "recompute activations in the backward pass to save memory: `selective` or `full`",
        special=_CHECKPOINTS, resume=Resume.FREE, aliases=("gradient_checkpointing",),
    )  # fmt: skip
    activations_checkpoint_method: str | None = setting(
        None, "which layers `full` recomputes: `uniform` or `block`", special=_CHECKPOINTS, resume=Resume.FREE
    )
    activations_checkpoint_num_layers: int | None = setting(
        None, "number of layers that `full` recomputes together", special=_CHECKPOINTS, resume=Resume.FREE
    )
    seed: int = setting(
        DEFAULT_SEED, "seed of the data order, and of dropout if the checkpoint has any",
        minimum=1, why="required by NeMo", axis=True,
    )  # fmt: skip
    dpo: DPOSection = field(default_factory=DPOSection)
    data: DataSection = field(default_factory=DataSection)
    optim: OptimSection = field(default_factory=OptimSection)
    peft: PeftSection = field(default_factory=PeftSection)
