"""What a step reports, from the same numbers as its loss.

`rewards/*` are beta-free log-ratios in nats, as in the paper (TRL multiplies by beta). The values of every pair are
handed on, in the order of the step, so that neither layout nor packing changes a mean, and quantiles can be taken.

N = pairs.
"""

import torch
from torch import Tensor

from nemo_minordpo.core.losses import coefficient

# Order of the rows in the table of a step's pairs.
PAIR_METRICS = (
    "loss",
    "rewards/chosen",
    "rewards/rejected",
    "rewards/margin",
    "rewards/accuracy",
    "logps/chosen",
    "logps/rejected",
    "dpo/coefficient",
    "minordpo/rejected_below_reference",
    "dpop/chosen_below_reference",
)
# What says more of close pairs than their mean, which a few of them can carry.
MARGIN_QUANTILES = {"rewards/margin_p10": 0.1, "rewards/margin_p50": 0.5, "rewards/margin_p90": 0.9}
# On which side of a kink a pair lies decides its gradient; nearer to it than the noise of the reference, chance does.
UNDECIDED = {"minordpo/rejected_undecided": "rewards/rejected", "dpop/chosen_undecided": "rewards/chosen"}
# Where these of a pair are finite, all others are.
DECISIVE = ("loss", "rewards/chosen", "rewards/rejected", "logps/chosen", "logps/rejected")
METRICS = (*PAIR_METRICS, *MARGIN_QUANTILES, *UNDECIDED)


@torch.no_grad()
def pair_metrics(
    *,
    loss: Tensor,
    chosen_log_ratio: Tensor,
    rejected_log_ratio: Tensor,
    chosen_log_probs: Tensor,
    rejected_log_probs: Tensor,
    beta: float,
) -> Tensor:
    """Each metric of each pair of a micro-batch.

    - `rewards/accuracy`: fraction of pairs whose margin is positive; a tie counts one half, as it tells nothing
      (all pairs tie at the first step).
    - `dpo/coefficient`: ``f(beta, margin)``, Eq. 4 of the paper.
    - `minordpo/rejected_below_reference`: pairs whose penalty is off (rejected log-ratio <= 0).
    - `dpop/chosen_below_reference`: pairs whose DPOP penalty is on (chosen log-ratio < 0).

    Args:
        loss, chosen_log_ratio, rejected_log_ratio, chosen_log_probs, rejected_log_probs: [N], nats.
        beta: as in the loss.

    Returns:
        [len(PAIR_METRICS), N], float64.
    """
    margin = chosen_log_ratio - rejected_log_ratio
    values = torch.stack(
        [
            loss,
            chosen_log_ratio,
            rejected_log_ratio,
            margin,
            (torch.sign(margin) + 1) / 2,
            chosen_log_probs,
            rejected_log_probs,
            coefficient(margin, beta=beta),
            (rejected_log_ratio <= 0).to(loss.dtype),
            (chosen_log_ratio < 0).to(loss.dtype),
        ]
    )
    return values.double()


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
    margins = values[PAIR_METRICS.index("rewards/margin")].quantile(levels)
    rows = [PAIR_METRICS.index(name) for name in UNDECIDED.values()]
    undecided = (values[rows].abs() <= noise).double().mean(dim=1)
    return dict(zip(METRICS, torch.cat([values.mean(dim=1), margins, undecided]).tolist(), strict=True))


def not_finite(values: Tensor) -> tuple[list[str], list[int]]:
    """Which of :data:`DECISIVE` are not finite for some pair, and for which pairs.

    Args:
        values: [len(PAIR_METRICS), N], as :func:`pair_metrics` lays them out.

    Returns:
        Names, and columns in ascending order.
    """
    broken = ~values[[PAIR_METRICS.index(name) for name in DECISIVE]].isfinite()
    names = [name for name, is_broken in zip(DECISIVE, broken.any(dim=1).tolist(), strict=True) if is_broken]
    return names, broken.any(dim=0).nonzero()[:, 0].tolist()
