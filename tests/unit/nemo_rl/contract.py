"""What nemo_minordpo.nemo_rl expects of NeMo-RL (August 2026), for machines without it.

NeMo-RL needs Python 3.13 and CUDA. Where it can be imported, the same tests use it instead of these classes.
"""

import sys
from types import ModuleType
from typing import Any

import torch
from pydantic import BaseModel
from torch.nn.functional import logsigmoid


class DPOConfig(BaseModel, extra="allow"):
    """The section `dpo`; NeMo-RL's has more fields of its own."""

    max_num_epochs: int = 1
    max_num_steps: int = 150
    seed: int = 42
    reference_policy_kl_penalty: float = 0.05
    preference_average_log_probs: bool = False
    sft_average_log_probs: bool = False
    preference_loss_weight: float = 1.0
    sft_loss_weight: float = 0.0


class DPOLossFn:
    """NeMo-RL's DPO, pair by pair and token by token."""

    def __init__(self, cfg: Any, use_fused_linear_logprobs: bool = False) -> None:
        self.reference_policy_kl_penalty = cfg.reference_policy_kl_penalty
        self.preference_loss_weight = cfg.preference_loss_weight
        self.sft_loss_weight = cfg.sft_loss_weight
        self.preference_average_log_probs = cfg.preference_average_log_probs
        self.sft_average_log_probs = cfg.sft_average_log_probs
        self.use_fused_linear_logprobs = use_fused_linear_logprobs

    def __call__(self, next_token_logprobs, data, global_valid_seqs, global_valid_toks):
        losses, supervised, chosen_rewards, rejected_rewards, wins = [], [], [], [], []
        for first in range(0, len(next_token_logprobs), 2):
            if not data["sample_mask"][first]:
                continue
            rewards, log_probs, counts = [], [], []
            for row in (first, first + 1):
                places = [t for t in range(next_token_logprobs.shape[1]) if data["token_mask"][row, t + 1]]
                policy = sum(next_token_logprobs[row, t] for t in places)
                reference = sum(data["reference_policy_logprobs"][row, t] for t in places)
                average = len(places) if self.preference_average_log_probs else 1
                rewards.append((policy - reference) / average)
                log_probs.append(policy)
                counts.append(len(places))
            chosen, rejected = rewards
            losses.append(-logsigmoid(self.reference_policy_kl_penalty * (chosen - rejected)))
            supervised.append(-log_probs[0] / (counts[0] if self.sft_average_log_probs else 1))
            chosen_rewards.append(chosen)
            rejected_rewards.append(rejected)
            wins.append(float(chosen > rejected))
        count = global_valid_seqs / 2
        preference, sft = sum(losses) / count, sum(supervised) / count
        sft = sft if self.sft_loss_weight > 0 else torch.tensor(0.0)
        loss = self.preference_loss_weight * preference + self.sft_loss_weight * sft
        return loss, {
            "loss": loss.item(),
            "sft_loss": sft.item(),
            "preference_loss": preference.item(),
            "accuracy": sum(wins) / count.item(),
            "rewards_chosen_mean": (sum(chosen_rewards) / count).item(),
            "rewards_rejected_mean": (sum(rejected_rewards) / count).item(),
            "num_valid_samples": float(len(losses)),
        }


def module(name: str, **members: Any) -> ModuleType:
    """A module, or package, with these members."""
    made = ModuleType(name)
    vars(made).update(members)
    made.__path__ = []
    return made


def install() -> None:
    """Make `nemo_rl.algorithms.loss` importable."""
    loss = {"DPOLossFn": DPOLossFn, "DPOLossConfig": DPOConfig}
    for name, members in (("nemo_rl", {}), ("nemo_rl.algorithms", {}), ("nemo_rl.algorithms.loss", loss)):
        sys.modules[name] = module(name, **members)
