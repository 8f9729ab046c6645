"""Pairs and options for loss tests; a test sets only what it is about."""

import torch

from nemo_minordpo.config import DPOSection
from nemo_minordpo.core.losses import Pairs
from nemo_minordpo.core.objective import options_of


def pairs_with(chosen, rejected, *, log_probs=(-3.0, -4.0), shared=-1.0, num_tokens=(2, 3), reward_margin=0.0):
    """Pairs with log-ratios [N]; the other values are the same for every pair, as (chosen, rejected)."""
    return Pairs(
        chosen_log_ratio=chosen,
        rejected_log_ratio=rejected,
        chosen_log_probs=torch.full_like(chosen, log_probs[0]),
        rejected_log_probs=torch.full_like(chosen, log_probs[1]),
        shared_log_probs=torch.full_like(chosen, shared),
        chosen_num_tokens=torch.full(chosen.shape, num_tokens[0]),
        rejected_num_tokens=torch.full(chosen.shape, num_tokens[1]),
        reward_margin=torch.full_like(chosen, reward_margin),
    )


def options_with(*, beta, **options):
    """Options as the configuration makes them, with its defaults."""
    return options_of(DPOSection(ref_policy_kl_penalty=beta, **options))
