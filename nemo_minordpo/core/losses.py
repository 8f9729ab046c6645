"""Preference losses: pure functions of a micro-batch's pairs and the objective's options, one value per pair.

A loss is a function ``(Pairs, Options) -> Tensor``. It returns [N], in the dtype of the log-ratios, and a pair's value
depends on that pair only. The caller handles masking, the mean over pairs, the data-parallel reduction and logging.
In the equations, chosen and rejected are the log-ratios of a pair's responses.

Gradients at a kink are 0: relu, not clamp. In the first step the policy equals the reference, so every pair sits
exactly on the kink; there relu has gradient 0, clamp(min=0) has 1 and maximum has 0.5. The papers stop the penalty
where policy <= reference.

Sources: DPO, Rafailov et al. 2023; DPOP, Pal et al. 2024; MinorDPO, Xie et al. 2024 (equation numbers without a name
are from this paper); the others are named at each loss.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from math import log, log1p

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
    shared_log_probs: the part of both that comes from the tokens before the first difference; 0 if there are none.
    chosen_num_tokens, rejected_num_tokens: number of tokens in these sums, including the end of the response; int64.
    reward_margin: ground-truth reward of the chosen response minus that of the rejected one, as given in the data.
    """

    chosen_log_ratio: Tensor
    rejected_log_ratio: Tensor
    chosen_log_probs: Tensor
    rejected_log_probs: Tensor
    shared_log_probs: Tensor
    chosen_num_tokens: Tensor
    rejected_num_tokens: Tensor
    reward_margin: Tensor

    @property
    def log_ratio_margin(self) -> Tensor:
        """``chosen_log_ratio - rejected_log_ratio``."""
        return self.chosen_log_ratio - self.rejected_log_ratio

    def compared(self, options: "Options") -> "Pairs":
        """The pairs as the losses see them: with `preference_average_log_probs`, log-ratios in nats per token."""
        if not options.preference_average_log_probs:
            return self
        return replace(
            self,
            chosen_log_ratio=self.chosen_log_ratio / self.chosen_num_tokens,
            rejected_log_ratio=self.rejected_log_ratio / self.rejected_num_tokens,
        )


@dataclass(frozen=True, kw_only=True)
class Options:
    """The objective's options, checked by the configuration (config/model_sections.py, `model.dpo`).

    beta: strength of the pull towards the reference, > 0, per nat.
    dpop_lambda: weight of DPOP's penalty, >= 0.
    minordpo_floor: the rejected log-ratio down to which MinorDPO pushes, nats.
    label_smoothing: probability that a pair is in the wrong order, in [0, 0.5).
    bdpo_lambda: weight of the policy in BDPO's mixture, in (0, 1).
    dpo_shift_lambda: factor of the rejected log-ratio in DPO-Shift, in (0, 1).
    simpo_gamma: SimPO's target, beta times nats per token.
    gt_reward_scale: factor of the reward margin.
    preference_average_log_probs: log-ratios are divided by the tokens of the response (:meth:`Pairs.compared`).
    sft_average_log_probs: so is the log-probability in :func:`sft`.
    """

    beta: float
    dpop_lambda: float
    minordpo_floor: float
    label_smoothing: float
    bdpo_lambda: float
    dpo_shift_lambda: float
    simpo_gamma: float
    gt_reward_scale: float
    preference_average_log_probs: bool
    sft_average_log_probs: bool


Loss = Callable[[Pairs, Options], Tensor]


def _logistic(margin: Tensor, options: Options) -> Tensor:
    """``-(1 - e) log sigmoid(beta * margin) - e log sigmoid(-beta * margin)``, e = label_smoothing.

    Conservative DPO (Mitchell 2023, "A note on DPO with noisy preferences"): the sigmoid is trained towards 1 - e, so
    the margin stops growing there. With e = 0 it is ``-log sigmoid(beta * margin)``.
    """
    logit, smoothing = options.beta * margin, options.label_smoothing
    return -(1 - smoothing) * logsigmoid(logit) - smoothing * logsigmoid(-logit)


def dpo(pairs: Pairs, options: Options) -> Tensor:
    """``-log sigmoid(beta * (chosen - rejected))``; Eq. 2."""
    return _logistic(pairs.log_ratio_margin, options)


def dpop(pairs: Pairs, options: Options) -> Tensor:
    """``-log sigmoid(beta * (chosen - rejected - lambda * max(0, -chosen)))``; Eq. 5.

    The penalty is inside the sigmoid and multiplied by beta; ``lambda`` >= 0 is dimensionless.
    """
    return _logistic(pairs.log_ratio_margin - options.dpop_lambda * relu(-pairs.chosen_log_ratio), options)


def minordpo(pairs: Pairs, options: Options) -> Tensor:
    """``-log sigmoid(beta * (chosen - max(floor, rejected)))``; Eq. 6, where the floor is 0.

    DPO that stops pushing a rejected response down once it is no likelier than under the reference; with a floor below
    0, later, with one above 0, earlier.
    """
    floor = options.minordpo_floor
    return _logistic(pairs.chosen_log_ratio - (floor + relu(pairs.rejected_log_ratio - floor)), options)


def bdpo(pairs: Pairs, options: Options) -> Tensor:
    """``-log sigmoid(beta * (chosen - log(lambda * exp(rejected) + 1 - lambda)))``.

    Bounded DPO: the rejected response's probability is that of the mixture ``lambda * policy + (1 - lambda) *
    reference``, so its log-ratio is never below log(1 - lambda). Source: Cho et al. 2025, section 4 (arXiv 2506.12725).
    """
    rejected, weight = pairs.rejected_log_ratio, options.bdpo_lambda
    of_mixture = torch.logaddexp(rejected + log(weight), rejected.new_tensor(log1p(-weight)))
    return _logistic(pairs.chosen_log_ratio - of_mixture, options)


def dpo_shift(pairs: Pairs, options: Options) -> Tensor:
    """``-log sigmoid(beta * (chosen - lambda * rejected))``; Yang et al. 2025 (arXiv 2502.07599), lambda fixed."""
    return _logistic(pairs.chosen_log_ratio - options.dpo_shift_lambda * pairs.rejected_log_ratio, options)


def simpo(pairs: Pairs, options: Options) -> Tensor:
    """``-log sigmoid(beta * (log pi(chosen) / tokens - log pi(rejected) / tokens) - gamma)``; Meng et al. 2024, Eq. 6.

    It needs no reference. ``gamma`` is outside beta, as in the paper and in TRL.
    """
    chosen = pairs.chosen_log_probs / pairs.chosen_num_tokens
    rejected = pairs.rejected_log_probs / pairs.rejected_num_tokens
    return _logistic(chosen - rejected - options.simpo_gamma / options.beta, options)


simpo.needs_reference = False  # pyright: ignore[reportFunctionMemberAccess]


def robust(pairs: Pairs, options: Options) -> Tensor:
    """``(-(1 - e) log sigmoid(z) + e log sigmoid(-z)) / (1 - 2 e)``, z = beta * (chosen - rejected).

    Robust DPO: if each pair is in the wrong order with probability e, label_smoothing, the expected loss is that of
    DPO on the right order. It has no lower bound. Source: Chowdhury et al. 2024 (arXiv 2403.00409), as in TRL.
    """
    logit, smoothing = options.beta * pairs.log_ratio_margin, options.label_smoothing
    return (-(1 - smoothing) * logsigmoid(logit) + smoothing * logsigmoid(-logit)) / (1 - 2 * smoothing)


def hinge(pairs: Pairs, options: Options) -> Tensor:
    """``max(0, 1 - beta * (chosen - rejected))``; SLiC, Zhao et al. 2023, on log-ratios as in RSO, Liu et al. 2024."""
    return relu(1 - options.beta * pairs.log_ratio_margin)


def apo_zero(pairs: Pairs, options: Options) -> Tensor:
    """``1 - sigmoid(beta * chosen) + sigmoid(beta * rejected)``; D'Oosterlinck et al. 2024, Eq. 7; TRL adds the 1.

    The chosen response goes up and the rejected one down, each on its own.
    """
    beta = options.beta
    return torch.sigmoid(-beta * pairs.chosen_log_ratio) + torch.sigmoid(beta * pairs.rejected_log_ratio)


def apo_down(pairs: Pairs, options: Options) -> Tensor:
    """``sigmoid(beta * chosen) + 1 - sigmoid(beta * (chosen - rejected))``; as :func:`apo_zero`, Eq. 8.

    Both responses go down, the rejected one more: for chosen responses that are worse than the model's own.
    """
    beta = options.beta
    return torch.sigmoid(beta * pairs.chosen_log_ratio) + torch.sigmoid(-beta * pairs.log_ratio_margin)


def nca_pair(pairs: Pairs, options: Options) -> Tensor:
    """``-log sigmoid(c) - log sigmoid(-c) / 2 - log sigmoid(-r) / 2``, c = beta * chosen, r = beta * rejected.

    Source: noise contrastive alignment for pairs, Chen et al. 2024 (arXiv 2402.05369), as in TRL.
    """
    chosen, rejected = options.beta * pairs.chosen_log_ratio, options.beta * pairs.rejected_log_ratio
    return -logsigmoid(chosen) - 0.5 * logsigmoid(-chosen) - 0.5 * logsigmoid(-rejected)


def sft(pairs: Pairs, options: Options) -> Tensor:
    """``-log pi(chosen)``, with `sft_average_log_probs` divided by the tokens of the response."""
    log_probs = pairs.chosen_log_probs
    return -(log_probs / pairs.chosen_num_tokens if options.sft_average_log_probs else log_probs)


sft.needs_reference = False  # pyright: ignore[reportFunctionMemberAccess]


def ipo(pairs: Pairs, options: Options) -> Tensor:
    """``(chosen - rejected - 1 / (2 beta))^2``; Azar et al. 2023, Eq. 17."""
    return (pairs.log_ratio_margin - 1.0 / (2.0 * options.beta)).square()


def rpo_sq(pairs: Pairs, options: Options) -> Tensor:
    """``(beta * (chosen - rejected) - scale * reward_margin)^2``; RPO, Adler et al. 2024, as in NeMo-Aligner 0.7.0."""
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
    loss.__name__: loss
    for loss in (
        dpo, dpop, minordpo, ipo, rpo_sq, rpo_bwd_kl, rpo_fwd_kl, robust, hinge, apo_zero, apo_down, nca_pair, bdpo,
        dpo_shift, simpo, sft,
    )
}  # fmt: skip


def needs_reference(loss: Loss) -> bool:
    """Whether a loss reads log-ratios; a function that does not declares it: ``simpo.needs_reference = False``."""
    return getattr(loss, "needs_reference", True)


def objective(weights: Mapping[Loss, float], pairs: Pairs, options: Options) -> Tensor:
    """The weighted sum of some losses. Returns [N]."""
    compared = pairs.compared(options)
    values = [weight * loss(compared, options) for loss, weight in weights.items()]
    return torch.stack(values).sum(dim=0)


def coefficient(margin: Tensor, *, beta: float) -> Tensor:
    """``f(beta, margin) = beta * sigmoid(-beta * margin)``, the weight of a pair in DPO's gradient; Eq. 4."""
    return beta * torch.sigmoid(-beta * margin)
