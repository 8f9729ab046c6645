"""Ranges of settings, and combinations of them that cannot work."""

import math
import re
from collections.abc import Collection
from dataclasses import is_dataclass
from typing import Any

from nemo_minordpo.config.keys import closest
from nemo_minordpo.config.lora import LORA_TARGETS
from nemo_minordpo.config.sections import (
    CheckpointSection,
    DPOSection,
    OptimSection,
    PeftSection,
    RunSection,
    TrainConfig,
    WatchSection,
)
from nemo_minordpo.errors import UserError

OPTIMIZERS = ("adam", "adamw", "sgd", "fused_adam", "mcore_distributed_optim", "distributed_fused_adam")
PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")
_LARGEST = 2**31 - 1  # of whole numbers: what the libraries below hold


def problems_of(config: TrainConfig, *, loss_names: tuple[str, ...]) -> list[str]:
    """Every setting that is out of its range, and every combination that cannot work; one message each."""
    model, loop = config.model, config.trainer.dpo
    return [
        message
        for wrong, message in (
            *_objective_checks(model.dpo, loss_names),
            *_optimizer_checks(model.optim),
            *_layout_checks(config),
            *_peft_checks(model.peft, model.optim),
            *_watch_checks(loop.watch),
            *_checkpoint_checks(config.exp_manager.checkpoint_callback_params),
            (model.data.seq_length < 2, "model.data.seq_length must be >= 2 tokens"),
            (model.data.packed_sequence_size < 2, "model.data.packed_sequence_size must be >= 2 tokens"),
            (not model.data.data_prefix.train, "model.data.data_prefix.train is empty: name at least one jsonl file"),
            _one_of("model.data.invalid_pairs", model.data.invalid_pairs, ("refuse", "drop")),
            (model.seed < 1, "model.seed must be >= 1 (NeMo refuses others)"),
            (loop.max_epochs < 1, "trainer.dpo.max_epochs must be >= 1"),
            (loop.max_steps < -1 or loop.max_steps == 0, "trainer.dpo.max_steps must be >= 1, or -1 for no limit"),
            (loop.val_check_interval < 0, "trainer.dpo.val_check_interval must be >= 0 steps"),
            (loop.save_interval < 0, "trainer.dpo.save_interval must be >= 0 steps"),
            (loop.gradient_clip_val < 0, "trainer.dpo.gradient_clip_val must be >= 0"),
            (
                loop.limit_val_batches is not None and loop.limit_val_batches < 1,
                "trainer.dpo.limit_val_batches must be >= 1, or null for the whole set",
            ),
        )
        if wrong
    ] + [*_unusable_values(config), *_duration_problems(config.exp_manager)]


def _unusable_values(value: Any, *keys: str) -> list[str]:
    """A message for each number that is not finite or far too large, and each text that can only be an oversight."""
    if problem := _unusable(value):
        # keys of the checkpoint's own configuration are typed beside those of ModelSection
        key = ".".join("model" if key == "checkpoint_overrides" else key for key in keys)
        return [f"{key}={problem}"]
    if is_dataclass(value):
        value = vars(value)
    if isinstance(value, dict):
        return [message for key, item in value.items() for message in _unusable_values(item, *keys, str(key))]
    if isinstance(value, list):
        return [message for item in value for message in _unusable_values(item, *keys)]
    return []


def _unusable(value: Any) -> str:
    """What is wrong with a value, whatever setting it is of; empty: nothing."""
    if isinstance(value, float) and not math.isfinite(value):
        return f"{value}: a finite number expected"
    if isinstance(value, int) and abs(value) > _LARGEST:
        return f"{str(value)[:20]}{'...' if abs(value) >= 10**20 else ''}: a number up to {_LARGEST} expected"
    if value == "":
        return "'': a text expected (was a variable of the shell empty?); null where there is none"
    if isinstance(value, str) and value.startswith("~/"):
        return f"{value}: ~ is the shell's, and is not expanded in quotes or behind KEY=; write the folder out"
    return ""


def _one_of(key: str, value: str, known: Collection[str]) -> tuple[bool, str]:
    return value not in known, f"{key}={value!r} is unknown; known: {', '.join(known)}{closest(value, known)}"


def _objective_checks(dpo: DPOSection, loss_names: tuple[str, ...]) -> list[tuple[bool, str]]:
    return [
        (
            not dpo.ref_policy_kl_penalty > 0,
            f"model.dpo.ref_policy_kl_penalty={dpo.ref_policy_kl_penalty}: beta must be > 0 (at 0 nothing is learnt)",
        ),
        _one_of("model.dpo.preference_loss", dpo.preference_loss, loss_names),
        _one_of("model.dpo.reference_log_probs", dpo.reference_log_probs, ("cached", "live")),
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
    return [
        (not optim.lr > 0, f"model.optim.lr={optim.lr} must be > 0"),
        _one_of("model.optim.name", optim.name, OPTIMIZERS),
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
        _one_of("model.optim.sched.name", sched.name, ("linear", "cosine", "constant")),
        (not 0 <= sched.warmup_ratio < 1, f"model.optim.sched.warmup_ratio={sched.warmup_ratio} must be in [0, 1)"),
        (sched.warmup_steps is not None and sched.warmup_steps < 0, "model.optim.sched.warmup_steps must be >= 0"),
        (
            not 0 <= sched.min_lr <= optim.lr,
            f"model.optim.sched.min_lr={sched.min_lr} must be between 0 and model.optim.lr={optim.lr}",
        ),
    ]


def _peft_checks(peft: PeftSection, optim: OptimSection) -> list[tuple[bool, str]]:
    lora = peft.lora_tuning
    targets = lora.target_modules
    return [
        _one_of("model.peft.peft_scheme", peft.peft_scheme, ("none", "lora")),
        (
            peft.peft_scheme == "none" and peft.restore_from_path is not None,
            "model.peft.restore_from_path is for model.peft.peft_scheme=lora",
        ),
        (
            targets is not None and not (targets and set(targets) <= LORA_TARGETS.keys()),
            f"model.peft.lora_tuning.target_modules={targets}: some of {', '.join(LORA_TARGETS)} expected",
        ),
        (lora.adapter_dim is not None and lora.adapter_dim < 1, "model.peft.lora_tuning.adapter_dim must be >= 1"),
        (lora.alpha is not None and lora.alpha < 1, "model.peft.lora_tuning.alpha must be >= 1"),
        (not 0 <= (lora.adapter_dropout or 0) < 1, "model.peft.lora_tuning.adapter_dropout must be in [0, 1)"),
        (
            peft.peft_scheme == "lora" and optim.name == "distributed_fused_adam",
            "model.optim.name=distributed_fused_adam does not work with LoRA (NeMo): take fused_adam or adamw",
        ),
    ]


def _layout_checks(config: TrainConfig) -> list[tuple[bool, str]]:
    model, trainer = config.model, config.trainer
    sizes = {
        "trainer.num_nodes": trainer.num_nodes,
        "trainer.devices": trainer.devices,
        "model.tensor_model_parallel_size": model.tensor_model_parallel_size,
        "model.pipeline_model_parallel_size": model.pipeline_model_parallel_size,
        "model.global_batch_size": model.global_batch_size,
    }
    checks = [(value < 1, f"{key}={value} must be >= 1") for key, value in sizes.items()]
    checks += [
        (
            model.micro_batch_size != 1,
            f"model.micro_batch_size={model.micro_batch_size}: a micro-batch is one row, in which many pairs are "
            "packed; model.data.packed_sequence_size says how many tokens it may hold",
        ),
        _one_of("trainer.accelerator", trainer.accelerator, ("auto", "cpu", "gpu")),
        _one_of("trainer.precision", trainer.precision, PRECISIONS),
    ]
    return checks


def _checkpoint_checks(section: CheckpointSection) -> list[tuple[bool, str]]:
    prefix = "exp_manager.checkpoint_callback_params"
    return [
        (section.keep_last < 1, f"{prefix}.keep_last must be >= 1"),
        (section.save_top_k < 0, f"{prefix}.save_top_k must be >= 0"),
        _one_of(f"{prefix}.mode", section.mode, ("min", "max")),
    ]


def _watch_checks(watch: WatchSection) -> list[tuple[bool, str]]:
    prefix = "trainer.dpo.watch"
    return [
        (watch.interval < 0, f"{prefix}.interval must be >= 0 steps"),
        (watch.num_prompts < 1, f"{prefix}.num_prompts must be >= 1"),
        (watch.max_new_tokens < 24, f"{prefix}.max_new_tokens must be >= 24: shorter answers cannot be seen to repeat"),
    ]


def _duration_problems(section: RunSection) -> list[str]:
    problems = []
    for name in ("max_time_per_run", "max_time_without_progress"):
        text = getattr(section, name)
        try:
            if text is not None and duration_in_seconds(text) == 0 and name == "max_time_without_progress":
                problems.append(f"exp_manager.{name} must be longer than 0; null = no limit")
        except UserError as error:
            problems.append(f"exp_manager.{name}={error}")
    return problems


def duration_in_seconds(text: str) -> int:
    """Seconds of a DD:HH:MM:SS time.

    Raises:
        UserError: it is not one.
    """
    if not re.fullmatch(r"\d{1,4}(:\d{1,4}){3}", text, re.ASCII):
        raise UserError(f"{text!r}: DD:HH:MM:SS expected, such as 00:03:50:00")
    days, hours, minutes, seconds = map(int, text.split(":"))
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds
