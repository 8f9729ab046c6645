"""Combinations of settings that cannot work, and settings that have no effect."""

from omegaconf import MISSING

from nemo_minordpo.config.keys import DECLARED, default_of, reads, value_of
from nemo_minordpo.config.losses import loss_label, readers, weights_of
from nemo_minordpo.config.sections import TrainConfig


def combination_problems(config: TrainConfig) -> list[str]:
    """A message for every combination that cannot work."""
    objective, optim, peft = config.model.dpo, config.model.optim, config.model.peft
    other_reference = config.pretrained_checkpoint.reference_from_path
    return [
        message
        for wrong, message in (
            (
                other_reference is not None and objective.reference_log_probs == "live",
                f"pretrained_checkpoint.reference_from_path={other_reference}: the log-probabilities of another model "
                "are cached: it does not work with model.dpo.reference_log_probs=live",
            ),
            (
                objective.preference_loss_weight == 0 and objective.sft_loss_weight == 0,
                "model.dpo.preference_loss_weight and model.dpo.sft_loss_weight are both 0: there is no loss to train",
            ),
            (
                objective.minordpo_floor != 0 and objective.preference_average_log_probs,
                f"model.dpo.minordpo_floor={objective.minordpo_floor} is in nats of a whole response: it does not work "
                "with model.dpo.preference_average_log_probs=true",
            ),
            (
                optim.betas is not None and optim.name == "sgd",
                "model.optim.betas is for Adam: set model.optim.betas=null for sgd",
            ),
            (
                optim.momentum is not None and optim.name != "sgd",
                "model.optim.momentum is for model.optim.name=sgd only",
            ),
            (
                optim.sched.min_lr > optim.lr,
                f"model.optim.sched.min_lr={optim.sched.min_lr} must be between 0 and model.optim.lr={optim.lr}",
            ),
            (
                peft.peft_scheme == "none" and peft.restore_from_path is not None,
                "model.peft.restore_from_path requires model.peft.peft_scheme=lora",
            ),
            (
                peft.peft_scheme == "lora" and optim.name == "distributed_fused_adam",
                "model.optim.name=distributed_fused_adam does not work with LoRA in NeMo: use fused_adam or adamw",
            ),
        )
        if wrong
    ]


def unread_notes(config: TrainConfig) -> list[str]:
    """One line for each setting that was changed but that the loss ignores.

    Not an error: the runs of a sweep over losses share their settings.
    """
    losses, label = weights_of(config.model.dpo), loss_label(config.model.dpo.preference_loss)
    return [
        f"{key}={value_of(config, key)} has no effect on {label}; it is read by {readers(setting.losses)}"
        for key, setting in DECLARED.items()
        if not reads(losses, key) and default_of(key) not in (value_of(config, key), MISSING)
    ]
