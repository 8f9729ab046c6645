"""This project's losses as a loss function of NeMo-RL's DPO.

NeMo-RL hands the loss a micro-batch of B = 2 N sequences of S tokens, padded on the right: chosen and rejected response
of N pairs in turn. It sums losses and metrics over micro-batches and data-parallel ranks, so both are divided by the
number of pairs of the whole step here.
"""

from collections.abc import Mapping
from typing import Any

import torch
from nemo_rl.algorithms.loss import DPOLossFn
from torch import Tensor

from nemo_minordpo.config import mixed
from nemo_minordpo.core.losses import LOSSES, Pairs, objective, sft
from nemo_minordpo.core.metrics import PAIR_METRICS, ROWS, not_finite, pair_metrics
from nemo_minordpo.core.objective import options_of
from nemo_minordpo.nemo_rl.settings import objective_of


class MinorDPOLossFn(DPOLossFn):
    """``w_p * mean(preference_loss) + w_s * mean(sft)`` over the valid pairs of a step.

    `preference_loss` is any loss of core/losses.py that reads no ground-truth rewards, or a mix of them; with `dpo`,
    loss and gradient are those of NeMo-RL's own class. Sums over tokens are float64: log-ratios are small differences
    of large sums.
    """

    def __init__(self, cfg: Any, use_fused_linear_logprobs: bool = False) -> None:
        """Signature as NeMo-RL's; see :func:`~nemo_minordpo.nemo_rl.settings.objective_of` for `cfg` and errors."""
        super().__init__(cfg, use_fused_linear_logprobs=use_fused_linear_logprobs)
        section = objective_of(cfg)
        self._losses = {LOSSES[name]: weight for name, weight in mixed(section.preference_loss).items()}
        self._options = options_of(section)

    def __call__(
        self,
        next_token_logprobs: Tensor,
        data: Mapping[str, Tensor],
        global_valid_seqs: Tensor,
        global_valid_toks: Tensor | None,
    ) -> tuple[Tensor, dict[str, float]]:
        """Loss and metrics of a micro-batch.

        Args:
            next_token_logprobs: [B, S - 1], nats; place t is that of token t + 1, under the policy.
            data: `input_ids` [B, S]; `token_mask` [B, S], 1 for the tokens of responses; `sample_mask` [B], 0 for pairs
                that fill up a batch; `reference_policy_logprobs` [B, S], as `next_token_logprobs`.
            global_valid_seqs: valid sequences of the step on all ranks; two per pair.
            global_valid_toks: not read.

        Returns:
            The loss, and the metrics of NeMo-RL's DPO together with those of core/metrics.py.

        Raises:
            FloatingPointError: the loss of a valid pair, or what it is computed from, is not finite.
        """
        pairs = pairs_of(next_token_logprobs, data)
        preference, supervised = objective(self._losses, pairs, self._options), sft(pairs, self._options)
        total = self.preference_loss_weight * preference + self.sft_loss_weight * supervised
        per_pair = pair_metrics(pairs, self._options, total)
        names, broken = not_finite(per_pair)
        if broken:
            raise FloatingPointError(f"{', '.join(names)} not finite for {len(broken)} of {len(total)} pairs")
        pairs_of_step = (global_valid_seqs / 2).to(total)
        loss = total.sum() / pairs_of_step
        of_nemo_rl = torch.stack([preference, supervised, (pairs.log_ratio_margin > 0).to(total)]).detach()
        sums = torch.cat([per_pair, of_nemo_rl]).sum(dim=1) / pairs_of_step
        *shown, preference_loss, sft_loss, accuracy = sums.tolist()
        metrics = {
            "loss": shown[ROWS["loss"]],
            "sft_loss": sft_loss if self.sft_loss_weight > 0 else 0.0,
            "preference_loss": preference_loss,
            "accuracy": accuracy,  # a tie counts as 0, unlike rewards/accuracy
            "rewards_chosen_mean": shown[ROWS["rewards/chosen"]],
            "rewards_rejected_mean": shown[ROWS["rewards/rejected"]],
            "num_valid_samples": float(len(total)),
        }
        return loss.to(next_token_logprobs.dtype), {**dict(zip(PAIR_METRICS, shown, strict=True)), **metrics}


def pairs_of(next_token_logprobs: Tensor, data: Mapping[str, Tensor]) -> Pairs:
    """The inputs of the losses for a micro-batch's valid pairs; arguments as of :meth:`MinorDPOLossFn.__call__`."""
    valid = data["sample_mask"].bool()
    mask, ids = data["token_mask"][valid, 1:].bool(), data["input_ids"][valid, 1:]
    # where, not a product: 0 times a padded place that is not finite would be NaN
    policy, reference = (
        torch.where(mask, values[valid], 0).double()
        for values in (next_token_logprobs, data["reference_policy_logprobs"][:, :-1])
    )
    log_probs, num_tokens = policy.sum(dim=1), mask.sum(dim=1).clamp(min=1)
    log_ratios = log_probs - reference.sum(dim=1)
    shared = (ids[::2] == ids[1::2]).cumprod(dim=1).bool() & mask[1::2]
    return Pairs(
        chosen_log_ratio=log_ratios[::2],
        rejected_log_ratio=log_ratios[1::2],
        chosen_log_probs=log_probs[::2],
        rejected_log_probs=log_probs[1::2],
        shared_log_probs=(policy[::2] * shared).sum(dim=1),
        chosen_num_tokens=num_tokens[::2],
        rejected_num_tokens=num_tokens[1::2],
        reward_margin=torch.zeros_like(log_probs[::2]),
    )
