"""What a step reports, from the same numbers as its loss.

`rewards/*` are beta-free log-ratios in nats, as in the paper (TRL multiplies by beta). Sums over pairs are handed
on, not means: sums over micro-batches and ranks add up, and one division by the number of pairs ends it.
"""

import torch
from torch import Tensor

from nemo_minordpo.core.losses import coefficient

# Order of the sums in the vector that is reduced over ranks; the last entry is the number of pairs.
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


@torch.no_grad()
def pair_metric_sums(
    *,
    loss: Tensor,
    chosen_log_ratio: Tensor,
    rejected_log_ratio: Tensor,
    chosen_log_probs: Tensor,
    rejected_log_probs: Tensor,
    beta: float,
) -> Tensor:
    """Sums over the pairs of a micro-batch.

    - `rewards/accuracy`: fraction of pairs whose margin is positive; a tie counts one half, as it tells nothing
      (all pairs tie at the first step).
    - `dpo/coefficient`: ``f(beta, margin)``, Eq. 4 of the paper.
    - `minordpo/rejected_below_reference`: pairs whose penalty is off (rejected log-ratio <= 0).
    - `dpop/chosen_below_reference`: pairs whose DPOP penalty is on (chosen log-ratio < 0).

    Args:
        loss, chosen_log_ratio, rejected_log_ratio, chosen_log_probs, rejected_log_probs: [N], nats.
        beta: as in the loss.

    Returns:
        [len(PAIR_METRICS) + 1], float64.
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
            torch.ones_like(loss),
        ]
    )
    return values.double().sum(dim=1)


def means_of(sums: Tensor) -> dict[str, float]:
    """The means that the reduced sums stand for.

    Args:
        sums: [len(PAIR_METRICS) + 1], as :func:`pair_metric_sums` lays them out.
    """
    *totals, num_pairs = sums.tolist()
    if num_pairs < 1:
        raise ValueError("no pair was counted: there is nothing to take a mean of")
    return {name: total / num_pairs for name, total in zip(PAIR_METRICS, totals, strict=True)}
