"""What a step reports, from the same numbers as its loss.

`rewards/*` are beta-free log-ratios in nats, as in the paper (TRL multiplies by beta). The values of every pair are
handed on, in the order of the step, so that neither layout nor packing changes a mean, and quantiles can be taken.

N = pairs.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from nemo_minordpo.core.losses import Options, Pairs, coefficient


@dataclass(frozen=True, kw_only=True)
class PairMetric:
    """A number of each pair; what is reported is its mean over the pairs of the step, of all ranks.

    of: pairs, options and the loss of each pair [N] -> [N].
    formula, unit, reading: for docs/metrics.md; log-ratios are called chosen and rejected.
    is_decisive: where the decisive metrics of a pair are finite, all of its metrics are.
    """

    of: Callable[[Pairs, Options, Tensor], Tensor]
    formula: str
    unit: str
    reading: str
    is_decisive: bool = False


# Their order is the order of the rows in the table of a step's pairs.
PAIR_METRICS = {
    "loss": PairMetric(
        of=lambda pairs, options, loss: loss,
        formula="preference_loss_weight * loss - sft_loss_weight * log pi(chosen)",
        unit="nats",
        reading="What is minimised. log 2 = 0.693 before the first step of dpo, dpop and minordpo.",
        is_decisive=True,
    ),
    "rewards/chosen": PairMetric(
        of=lambda pairs, options, loss: pairs.chosen_log_ratio,
        formula="chosen",
        unit="nats",
        reading="Below 0 the chosen response is less likely than under the reference. 0 before the first step.",
        is_decisive=True,
    ),
    "rewards/rejected": PairMetric(
        of=lambda pairs, options, loss: pairs.rejected_log_ratio,
        formula="rejected",
        unit="nats",
        reading="Below 0 the rejected response is less likely than under the reference; there minordpo stops pushing.",
        is_decisive=True,
    ),
    "rewards/margin": PairMetric(
        of=lambda pairs, options, loss: pairs.log_ratio_margin,
        formula="chosen - rejected",
        unit="nats",
        reading="How far the policy tells the responses apart, beyond what the reference does.",
    ),
    "rewards/accuracy": PairMetric(
        of=lambda pairs, options, loss: (torch.sign(pairs.log_ratio_margin) + 1) / 2,
        formula="1 if chosen > rejected, 1/2 if equal, else 0",
        unit="fraction of pairs",
        reading="1/2 before the first step, when all pairs tie; a tie says nothing, so it counts one half.",
    ),
    "logps/chosen": PairMetric(
        of=lambda pairs, options, loss: pairs.chosen_log_probs,
        formula="log pi(chosen response)",
        unit="nats",
        reading="Summed over the tokens of the response: long responses have low ones.",
        is_decisive=True,
    ),
    "logps/rejected": PairMetric(
        of=lambda pairs, options, loss: pairs.rejected_log_probs,
        formula="log pi(rejected response)",
        unit="nats",
        reading="As logps/chosen.",
        is_decisive=True,
    ),
    "dpo/coefficient": PairMetric(
        of=lambda pairs, options, loss: coefficient(pairs.log_ratio_margin, beta=options.beta),
        formula="beta * sigmoid(-beta * (chosen - rejected)), Eq. 4 of the paper",
        unit="per nat",
        reading="Weight of a pair in DPO's gradient: beta / 2 before the first step, towards 0 for pairs that are won.",
    ),
    "minordpo/rejected_below_reference": PairMetric(
        of=lambda pairs, options, loss: (pairs.rejected_log_ratio <= 0).to(loss.dtype),
        formula="1 if rejected <= 0, else 0",
        unit="fraction of pairs",
        reading="Pairs whose rejected response minordpo no longer pushes down.",
    ),
    "dpop/chosen_below_reference": PairMetric(
        of=lambda pairs, options, loss: (pairs.chosen_log_ratio < 0).to(loss.dtype),
        formula="1 if chosen < 0, else 0",
        unit="fraction of pairs",
        reading="Pairs whose penalty is on under dpop.",
    ),
}
ROWS = {name: row for row, name in enumerate(PAIR_METRICS)}
DECISIVE = tuple(name for name, metric in PAIR_METRICS.items() if metric.is_decisive)
# What says more of close pairs than their mean, which a few of them can carry.
MARGIN_QUANTILES = {"rewards/margin_p10": 0.1, "rewards/margin_p50": 0.5, "rewards/margin_p90": 0.9}
# On which side of a kink a pair lies decides its gradient; nearer to it than the noise of the reference, chance does.
UNDECIDED = {"minordpo/rejected_undecided": "rewards/rejected", "dpop/chosen_undecided": "rewards/chosen"}
METRICS = (*PAIR_METRICS, *MARGIN_QUANTILES, *UNDECIDED)


@torch.no_grad()
def pair_metrics(pairs: Pairs, options: Options, loss: Tensor) -> Tensor:
    """Each metric of each pair of a micro-batch.

    Args:
        pairs, options: as the loss got them.
        loss: [N], nats, of each pair.

    Returns:
        [len(PAIR_METRICS), N], float64.
    """
    return torch.stack([metric.of(pairs, options, loss) for metric in PAIR_METRICS.values()]).double()


def summary(values: Tensor, *, noise: float = 0.0) -> dict[str, float]:
    """The mean of each metric over pairs, :data:`MARGIN_QUANTILES` and :data:`UNDECIDED`.

    Args:
        values: [len(PAIR_METRICS), N], as :func:`pair_metrics` lays them out, of all pairs.
        noise: nats; pairs whose log-ratio is no further from 0 are on a side of the kink by chance.

    Raises:
        ValueError: there is no pair.
    """
    if not values.shape[1]:
        raise ValueError("no pair was counted: there is nothing to take a mean of")
    levels = values.new_tensor(list(MARGIN_QUANTILES.values()))
    margins = values[ROWS["rewards/margin"]].quantile(levels)
    undecided = (values[[ROWS[name] for name in UNDECIDED.values()]].abs() <= noise).double().mean(dim=1)
    return dict(zip(METRICS, torch.cat([values.mean(dim=1), margins, undecided]).tolist(), strict=True))


def not_finite(values: Tensor) -> tuple[list[str], list[int]]:
    """Which of :data:`DECISIVE` are not finite for some pair, and for which pairs.

    Args:
        values: [len(PAIR_METRICS), N], as :func:`pair_metrics` lays them out.

    Returns:
        Names, and columns in ascending order.
    """
    broken = ~values[[ROWS[name] for name in DECISIVE]].isfinite()
    names = [name for name, is_broken in zip(DECISIVE, broken.any(dim=1).tolist(), strict=True) if is_broken]
    return names, broken.any(dim=0).nonzero()[:, 0].tolist()
