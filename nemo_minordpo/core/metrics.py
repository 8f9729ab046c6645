"""The metrics of a step, computed from the same numbers as its loss.

`rewards/*` are log-ratios in nats, without beta, as in the paper (TRL multiplies by beta). The value of every pair is
collected, in the order of the step, so that means do not depend on layout or packing, and quantiles are possible.

N = pairs.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from nemo_minordpo.core.losses import Options, Pairs, coefficient


@dataclass(frozen=True, kw_only=True)
class PairMetric:
    """A number per pair; the reported value is the mean over the step's pairs on all ranks.

    of: pairs, options and the loss of each pair [N] -> [N].
    formula, unit, reading: for docs/metrics.md, where the log-ratios are called chosen and rejected.
    is_decisive: if a pair's decisive metrics are finite, all of its metrics are.
    """

    of: Callable[[Pairs, Options, Tensor], Tensor]
    formula: str
    unit: str
    reading: str
    is_decisive: bool = False


def preferred(margin: Tensor) -> Tensor:
    """1 where the margin is positive, 1/2 where it is 0, else 0."""
    return (torch.sign(margin) + 1) / 2


# In the order of the rows of a step's table.
PAIR_METRICS = {
    "loss": PairMetric(
        of=lambda pairs, options, loss: loss,
        formula="the sum of the losses, each times its weight",
        unit="nats",
        reading="The minimised quantity. log 2 = 0.693 before the first step of dpo, dpop and minordpo.",
        is_decisive=True,
    ),
    "rewards/chosen": PairMetric(
        of=lambda pairs, options, loss: pairs.chosen_log_ratio,
        formula="chosen",
        unit="nats",
        reading="Below 0, the chosen response is less likely than under the reference. 0 before the first step.",
        is_decisive=True,
    ),
    "rewards/rejected": PairMetric(
        of=lambda pairs, options, loss: pairs.rejected_log_ratio,
        formula="rejected",
        unit="nats",
        reading="Below 0, the rejected response is less likely than under the reference, and minordpo stops pushing.",
        is_decisive=True,
    ),
    "rewards/margin": PairMetric(
        of=lambda pairs, options, loss: pairs.log_ratio_margin,
        formula="chosen - rejected",
        unit="nats",
        reading="How much better than the reference the policy separates the two responses.",
    ),
    "rewards/accuracy": PairMetric(
        of=lambda pairs, options, loss: preferred(pairs.log_ratio_margin),
        formula="1 if chosen > rejected, 1/2 if equal, else 0",
        unit="fraction of pairs",
        reading="1/2 before the first step, when all pairs tie; a tie carries no information and counts as one half.",
    ),
    "logps/chosen": PairMetric(
        of=lambda pairs, options, loss: pairs.chosen_log_probs,
        formula="log pi(chosen response)",
        unit="nats",
        reading="Summed over the tokens of the response, so long responses have low values.",
        is_decisive=True,
    ),
    "logps/rejected": PairMetric(
        of=lambda pairs, options, loss: pairs.rejected_log_probs,
        formula="log pi(rejected response)",
        unit="nats",
        reading="As logps/chosen.",
        is_decisive=True,
    ),
    "logps/shared": PairMetric(
        of=lambda pairs, options, loss: pairs.shared_log_probs,
        formula="log pi(response tokens before the first difference), 0 if there are none",
        unit="nats",
        reading="The part of logps/chosen and logps/rejected that both have in common. Its gradient cancels in "
        "chosen - rejected, so nothing in dpo keeps it from falling.",
    ),
    "deviation/chosen": PairMetric(
        of=lambda pairs, options, loss: pairs.chosen_log_ratio / pairs.chosen_num_tokens,
        formula="chosen / tokens of the chosen response",
        unit="nats per token",
        reading="Distance from the reference, comparable between lengths and data sets: MinorSFT's metric, Xie et al. "
        "2024 (arXiv 2408.10642).",
    ),
    "deviation/rejected": PairMetric(
        of=lambda pairs, options, loss: pairs.rejected_log_ratio / pairs.rejected_num_tokens,
        formula="rejected / tokens of the rejected response",
        unit="nats per token",
        reading="As deviation/chosen.",
    ),
    "logps/accuracy": PairMetric(
        of=lambda pairs, options, loss: preferred(pairs.chosen_log_probs - pairs.rejected_log_probs),
        formula="1 if log pi(chosen response) > log pi(rejected response), 1/2 if equal, else 0",
        unit="fraction of pairs",
        reading="Whether the model itself prefers the chosen response; short responses have an advantage.",
    ),
    "dpo/coefficient": PairMetric(
        of=lambda pairs, options, loss: coefficient(pairs.compared(options).log_ratio_margin, beta=options.beta),
        formula="beta * sigmoid(-beta * (chosen - rejected)), Eq. 4 of the paper",
        unit="per nat",
        reading="Weight of a pair in DPO's gradient: beta / 2 before the first step, near 0 for pairs already learnt. "
        "With preference_average_log_probs, of the log-ratios per token. Other losses weigh pairs differently.",
    ),
    "minordpo/rejected_below_reference": PairMetric(
        of=lambda pairs, options, loss: (pairs.rejected_log_ratio <= options.minordpo_floor).to(loss.dtype),
        formula="1 if rejected <= minordpo_floor, else 0",
        unit="fraction of pairs",
        reading="Pairs whose rejected response minordpo no longer pushes down; minordpo_floor is 0 unless it is set.",
    ),
    "dpop/chosen_below_reference": PairMetric(
        of=lambda pairs, options, loss: (pairs.chosen_log_ratio < 0).to(loss.dtype),
        formula="1 if chosen < 0, else 0",
        unit="fraction of pairs",
        reading="Pairs for which dpop's penalty is active.",
    ),
}
ROWS = {name: row for row, name in enumerate(PAIR_METRICS)}
DECISIVE = tuple(name for name, metric in PAIR_METRICS.items() if metric.is_decisive)
# A few pairs can dominate a mean; quantiles show the rest. Metric -> level, for each of two metrics of a pair.
_QUANTILES = {"p10": 0.1, "p50": 0.5, "p90": 0.9}
_OF_QUANTILES = ("rewards/margin", "rewards/chosen")
QUANTILES = {f"{name}_{suffix}": level for name in _OF_QUANTILES for suffix, level in _QUANTILES.items()}
# The side of the kink that a pair is on determines its gradient. Pairs closer to the kink than the noise of the
# reference are on one side or the other by chance.
UNDECIDED = {"minordpo/rejected_undecided": "rewards/rejected", "dpop/chosen_undecided": "rewards/chosen"}
METRICS = (*PAIR_METRICS, *QUANTILES, *UNDECIDED)


@torch.no_grad()
def pair_metrics(pairs: Pairs, options: Options, loss: Tensor) -> Tensor:
    """Each metric of each pair of a micro-batch.

    Args:
        pairs, options: the arguments of the loss.
        loss: [N], nats, the loss of each pair.

    Returns:
        [len(PAIR_METRICS), N], float64.
    """
    return torch.stack([metric.of(pairs, options, loss) for metric in PAIR_METRICS.values()]).double()


def summary(values: Tensor, *, noise: float = 0.0, floor: float = 0.0) -> dict[str, float]:
    """The mean of each metric over pairs, :data:`QUANTILES` and :data:`UNDECIDED`.

    Args:
        values: [len(PAIR_METRICS), N], laid out as by :func:`pair_metrics`, for all pairs.
        noise: nats; pairs whose log-ratio is at most this far from the kink count as undecided.
        floor: nats, MinorDPO's kink; DPOP's is at 0.

    Raises:
        ValueError: there are no pairs.
    """
    if not values.shape[1]:
        raise ValueError("no pairs: there is nothing to average")
    levels = values.new_tensor(list(_QUANTILES.values()))
    quantiles = values[[ROWS[name] for name in _OF_QUANTILES]].quantile(levels, dim=1).T.flatten()
    kinks = values.new_tensor([[floor], [0.0]])
    undecided = ((values[[ROWS[name] for name in UNDECIDED.values()]] - kinks).abs() <= noise).double().mean(dim=1)
    return dict(zip(METRICS, torch.cat([values.mean(dim=1), quantiles, undecided]).tolist(), strict=True))


def not_finite(values: Tensor) -> tuple[list[str], list[int]]:
    """Which of :data:`DECISIVE` are not finite for some pair, and for which pairs.

    Args:
        values: [len(PAIR_METRICS), N], laid out as by :func:`pair_metrics`.

    Returns:
        The metrics' names, and the pairs' columns in ascending order.
    """
    broken = ~values[[ROWS[name] for name in DECISIVE]].isfinite()
    names = [name for name, is_broken in zip(DECISIVE, broken.any(dim=1).tolist(), strict=True) if is_broken]
    return names, broken.any(dim=0).nonzero()[:, 0].tolist()
