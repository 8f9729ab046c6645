"""Preference losses: pure functions of a micro-batch's pairs and the objective's options, one value per pair.

A loss is a function ``(Pairs, Options) -> Tensor``. It returns [N], in the dtype of the log-ratios, and a pair's value
depends on that pair only. The caller handles masking, the mean over pairs, the data-parallel reduction and logging.

Gradients at a kink are 0: relu, not clamp. In the first step the policy equals the reference, so every pair sits
exactly on the kink; there relu has gradient 0, clamp(min=0) has 1 and maximum has 0.5. The papers stop the penalty
where policy <= reference.

Sources: DPO, Rafailov et al. 2023; DPOP, Pal et al. 2024; MinorDPO, Xie et al. 2024 (equation numbers below are from
this paper); IPO, Azar et al. 2023; RPO, Adler et al. 2024 (Nemotron-4), as implemented in NeMo-Aligner 0.7.0.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, relu


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """The inputs of a loss for the N pairs of a micro-batch; every field is [N].

    chosen_log_ratio, rejected_log_ratio: log(policy / reference) of a response, summed over its tokens, in nats;
        float64 in training (small differences of large sums), or float32. For a loss that needs no reference, the
        log-probabilities themselves.
    chosen_log_probs, rejected_log_probs: log(policy) of a response, summed over its tokens, in nats; the same dtype.
    chosen_num_tokens, rejected_num_tokens: number of tokens in these sums, including the end of the response; int64.
    reward_margin: ground-truth reward of the chosen response minus that of the rejected one, as given in the data.
    """

    chosen_log_ratio: Tensor
    rejected_log_ratio: Tensor
    chosen_log_probs: Tensor
    rejected_log_probs: Tensor
    chosen_num_tokens: Tensor
    rejected_num_tokens: Tensor
    reward_margin: Tensor

    @property
    def log_ratio_margin(self) -> Tensor:
        """``chosen_log_ratio - rejected_log_ratio``."""
        return self.chosen_log_ratio - self.rejected_log_ratio


@dataclass(frozen=True, kw_only=True)
class Options:
    """The objective's options, checked by the configuration (config/model_sections.py, `model.dpo`).

    beta: strength of the pull towards the reference, > 0, per nat.
    dpop_lambda: weight of DPOP's penalty, >= 0.
    gt_reward_scale: factor of the reward margin.
    preference_loss_weight, sft_loss_weight: weights of the two parts of :func:`objective`, >= 0.
    """

    beta: float
    dpop_lambda: float
    gt_reward_scale: float
    preference_loss_weight: float
    sft_loss_weight: float


Loss = Callable[[Pairs, Options], Tensor]


def dpo(pairs: Pairs, options: Options) -> Tensor:
    """``-log sigmoid(beta * (chosen - rejected))``; Eq. 2."""
    return -logsigmoid(options.beta * pairs.log_ratio_margin)


def dpop(pairs: Pairs, options: Options) -> Tensor:
    """``-log sigmoid(beta * (chosen - rejected - lambda * max(0, -chosen)))``; Eq. 5.

    The penalty is inside the sigmoid and multiplied by beta; ``lambda`` >= 0 is dimensionless.
    """
    penalty = options.dpop_lambda * relu(-pairs.chosen_log_ratio)
    return -logsigmoid(options.beta * (pairs.log_ratio_margin - penalty))


def minordpo(pairs: Pairs, options: Options) -> Tensor:
    """``-log sigmoid(beta * (chosen - max(0, rejected)))``; Eq. 6.

    DPO that stops pushing a rejected response down once it is no likelier than under the reference.
    """
    return -logsigmoid(options.beta * (pairs.chosen_log_ratio - relu(pairs.rejected_log_ratio)))


def ipo(pairs: Pairs, options: Options) -> Tensor:
    """``(chosen - rejected - 1 / (2 beta))^2``."""
    return (pairs.log_ratio_margin - 1.0 / (2.0 * options.beta)).square()


def rpo_sq(pairs: Pairs, options: Options) -> Tensor:
    """``(beta * (chosen - rejected) - scale * reward_margin)^2``."""
    return (options.beta * pairs.log_ratio_margin - options.gt_reward_scale * pairs.reward_margin).square()


def rpo_bwd_kl(pairs: Pairs, options: Options) -> Tensor:
    """``KL(a || b)`` of two Bernoulli distributions.

    ``a = sigmoid(scale * reward_margin)``, ``b = sigmoid(beta * (chosen - rejected))``.
    """
    return _bernoulli_kl(options.gt_reward_scale * pairs.reward_margin, options.beta * pairs.log_ratio_margin)


def rpo_fwd_kl(pairs: Pairs, options: Options) -> Tensor:
    """``KL(b || a)``, the other direction of :func:`rpo_bwd_kl`."""
    return _bernoulli_kl(options.beta * pairs.log_ratio_margin, options.gt_reward_scale * pairs.reward_margin)


def _bernoulli_kl(logit_p: Tensor, logit_q: Tensor) -> Tensor:
    log_p, log_not_p = logsigmoid(logit_p), logsigmoid(-logit_p)
    return log_p.exp() * (log_p - logsigmoid(logit_q)) + log_not_p.exp() * (log_not_p - logsigmoid(-logit_q))


# `model.dpo.preference_loss` -> loss. config.LOSS_NAMES has the same names, without importing torch.
LOSSES: dict[str, Loss] = {
    loss.__name__: loss for loss in (dpo, dpop, minordpo, ipo, rpo_sq, rpo_bwd_kl, rpo_fwd_kl)
}  # fmt: skip


def needs_reference(loss: Loss) -> bool:
    """Whether a loss reads log-ratios; a function that does not declares it: ``simpo.needs_reference = False``."""
    return getattr(loss, "needs_reference", True)


def objective(loss: Loss, pairs: Pairs, options: Options) -> Tensor:
    """``preference_loss_weight * loss - sft_loss_weight * log pi(chosen)``. Returns [N]."""
    values = options.preference_loss_weight * loss(pairs, options)
    if options.sft_loss_weight:
        values = values - options.sft_loss_weight * pairs.chosen_log_probs
    return values


def coefficient(margin: Tensor, *, beta: float) -> Tensor:
    """``f(beta, margin) = beta * sigmoid(-beta * margin)``, the weight of a pair in DPO's gradient; Eq. 4."""
    return beta * torch.sigmoid(-beta * margin)
