"""Preference losses: pure functions of two log-ratios, one value a pair.

A log-ratio is log(policy / reference) of one response, summed over its tokens, in nats.
The caller owns masking, the mean over pairs, the data-parallel reduction and logging.

N = preference pairs in the micro-batch.
chosen_log_ratio, rejected_log_ratio: [N], float64 in training (small differences of large sums), or float32.
beta: strength of the pull towards the reference, > 0, per nat; checked once, in config/checks.py.
reward_margin: [N], ground-truth reward of the chosen response minus that of the rejected one, scaled.
Each loss returns [N], in the same dtype.

Gradients at a kink are 0: relu, not clamp. Policy equals reference at the first step, so that every pair sits
exactly there; relu passes gradient 0 at 0, clamp(min=0) passes 1 and maximum 0.5. The papers stop the penalty
where policy <= reference.

Sources: DPO, Rafailov et al. 2023; DPOP, Pal et al. 2024; MinorDPO, Xie et al. 2024 (its equation numbers below);
IPO, Azar et al. 2023; RPO, Adler et al. 2024 (Nemotron-4) as NeMo-Aligner 0.7.0 has them.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, relu


def dpo_loss(*, chosen_log_ratio: Tensor, rejected_log_ratio: Tensor, beta: float) -> Tensor:
    """``-log sigmoid(beta * (chosen - rejected))``; Eq. 2."""
    return -logsigmoid(beta * (chosen_log_ratio - rejected_log_ratio))


def dpop_loss(
    *, chosen_log_ratio: Tensor, rejected_log_ratio: Tensor, beta: float, dpop_lambda: float = 50.0
) -> Tensor:
    """``-log sigmoid(beta * (chosen - rejected - lambda * max(0, -chosen)))``; Eq. 5.

    The penalty stands inside the sigmoid and is multiplied by beta; ``dpop_lambda`` >= 0 has no unit.
    """
    penalty = dpop_lambda * relu(-chosen_log_ratio)
    return -logsigmoid(beta * (chosen_log_ratio - rejected_log_ratio - penalty))


def minordpo_loss(*, chosen_log_ratio: Tensor, rejected_log_ratio: Tensor, beta: float) -> Tensor:
    """``-log sigmoid(beta * (chosen - max(0, rejected)))``; Eq. 6.

    DPO that stops pushing a rejected response down once it is no likelier than under the reference.
    """
    return -logsigmoid(beta * (chosen_log_ratio - relu(rejected_log_ratio)))


def ipo_loss(*, chosen_log_ratio: Tensor, rejected_log_ratio: Tensor, beta: float) -> Tensor:
    """``(chosen - rejected - 1 / (2 beta))^2``."""
    return (chosen_log_ratio - rejected_log_ratio - 1.0 / (2.0 * beta)).square()


def rpo_sq_loss(*, chosen_log_ratio: Tensor, rejected_log_ratio: Tensor, beta: float, reward_margin: Tensor) -> Tensor:
    """``(beta * (chosen - rejected) - reward_margin)^2``."""
    return (beta * (chosen_log_ratio - rejected_log_ratio) - reward_margin).square()


def rpo_bwd_kl_loss(
    *, chosen_log_ratio: Tensor, rejected_log_ratio: Tensor, beta: float, reward_margin: Tensor
) -> Tensor:
    """``KL(a || b)`` of two Bernoullis, ``a = sigmoid(reward_margin)``, ``b = sigmoid(beta * (chosen - rejected))``."""
    return _bernoulli_kl(reward_margin, beta * (chosen_log_ratio - rejected_log_ratio))


def rpo_fwd_kl_loss(
    *, chosen_log_ratio: Tensor, rejected_log_ratio: Tensor, beta: float, reward_margin: Tensor
) -> Tensor:
    """``KL(b || a)``, the other direction of :func:`rpo_bwd_kl_loss`."""
    return _bernoulli_kl(beta * (chosen_log_ratio - rejected_log_ratio), reward_margin)


def _bernoulli_kl(logit_p: Tensor, logit_q: Tensor) -> Tensor:
    log_p, log_not_p = logsigmoid(logit_p), logsigmoid(-logit_p)
    return log_p.exp() * (log_p - logsigmoid(logit_q)) + log_not_p.exp() * (log_not_p - logsigmoid(-logit_q))


def coefficient(margin: Tensor, *, beta: float) -> Tensor:
    """``f(beta, margin) = beta * sigmoid(-beta * margin)``, the weight of a pair in DPO's gradient; Eq. 4."""
    return beta * torch.sigmoid(-beta * margin)


class PreferenceLoss(NamedTuple):
    """A loss and what it needs beside the two log-ratios and beta."""

    function: Callable[..., Tensor]
    options: tuple[str, ...] = ()


# The one place that names the losses: the configuration's check, the help and the tests read it.
LOSSES: dict[str, PreferenceLoss] = {
    "dpo": PreferenceLoss(dpo_loss),
    "dpop": PreferenceLoss(dpop_loss, ("dpop_lambda",)),
    "minordpo": PreferenceLoss(minordpo_loss),
    "ipo": PreferenceLoss(ipo_loss),
    "rpo_sq": PreferenceLoss(rpo_sq_loss, ("reward_margin",)),
    "rpo_bwd_kl": PreferenceLoss(rpo_bwd_kl_loss, ("reward_margin",)),
    "rpo_fwd_kl": PreferenceLoss(rpo_fwd_kl_loss, ("reward_margin",)),
}


def preference_loss(
    name: str,
    *,
    chosen_log_ratio: Tensor,
    rejected_log_ratio: Tensor,
    beta: float,
    dpop_lambda: float,
    reward_margin: Tensor,
) -> Tensor:
    """The loss called ``name`` in :data:`LOSSES`, given only what it asks for. Returns [N]."""
    loss = LOSSES[name]
    available = {"dpop_lambda": dpop_lambda, "reward_margin": reward_margin}
    return loss.function(
        chosen_log_ratio=chosen_log_ratio,
        rejected_log_ratio=rejected_log_ratio,
        beta=beta,
        **{option: available[option] for option in loss.options},
    )
