"""The model on packed pairs, with loss, metrics and reference."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from lightning.pytorch.trainer.trainer import Trainer
from nemo_aligner.utils.train_utils import set_eval, set_train
from nemo_aligner.utils.utils import cpu_weight_swap
from omegaconf import DictConfig
from torch import Tensor

from nemo_minordpo.config import DPOSection
from nemo_minordpo.core.losses import needs_reference, objective
from nemo_minordpo.core.metrics import PAIR_METRICS, pair_metrics, summary
from nemo_minordpo.core.objective import options_of
from nemo_minordpo.train.data.dataset import MicroBatch, StepBatch
from nemo_minordpo.train.model import fp8
from nemo_minordpo.train.model.packed_rows_model import PackedRowsModel
from nemo_minordpo.train.model.preference_loss import losses_of, pairs_of


class MegatronGPTMinorDPOModel(PackedRowsModel):
    """DPO, DPOP, MinorDPO and upstream's losses, tensor- and pipeline-parallel.

    Overrides of NeMo-Aligner 0.7.0's MegatronGPTDPOModel, in addition to those of :class:`PackedRowsModel`, and why:

    - `__init__`: beta has no default; the losses are those of core/losses.py, or the user's own.
    - `get_forward_output_and_loss_func`: packed pairs whose shared tokens are computed once; log-probabilities of
      response tokens only, summed per response; no collective per micro-batch except in the head (upstream: four).
    - `get_loss_and_metrics`: the mean over the pairs of the whole global batch (upstream averages the means of
      micro-batches); one collective per step (upstream: eight broadcasts and as many `.item()`).
    - `get_logprob_batch`, `get_ref_policy_logprobs`: one number per response, evaluated in eval mode (upstream: one
      per token, with dropout if the checkpoint has any). Training reads them from a cache (reference_cache.py);
      upstream swaps all weights at every step to compute them.
    """

    def __init__(self, cfg: DictConfig, trainer: Trainer) -> None:
        """Arguments as passed by NeMo; `cfg.dpo` is the objective (config.DPOSection)."""
        super().__init__(cfg, trainer=trainer)
        section = DPOSection(**cfg.dpo)
        self.losses = losses_of(section)
        self.options = options_of(section)
        self.needs_reference = any(map(needs_reference, self.losses))

    def get_loss_and_metrics(self, batch: StepBatch, forward_only: bool) -> tuple[float, dict[str, float]]:
        """Forward (and backward) over a step's pairs.

        Returns:
            The loss in nats and the metrics of core/metrics.py, both over the pairs of all ranks, on every rank.
        """
        metrics = summary(self.gathered(self.pair_metrics(batch, forward_only=forward_only)))
        return metrics["loss"], metrics

    def pair_metrics(self, batch: StepBatch, *, forward_only: bool) -> Tensor:
        """This rank's part of the metrics of a step's pairs; :meth:`gathered` combines the parts.

        Returns:
            [len(PAIR_METRICS), batch.num_global_pairs], float64; zero for the pairs of other ranks.
        """
        table = torch.zeros(
            len(PAIR_METRICS), batch.num_global_pairs, dtype=torch.float64, device=torch.cuda.current_device()
        )
        results = self.run_schedule(
            self.get_forward_output_and_loss_func(batch=batch),
            batch.micro_batches,
            row_length=batch.row_length,
            forward_only=forward_only,
        )
        # only the last pipeline stage has results
        for part, values in zip(batch.micro_batches, results, strict=False):
            table[:, part.in_step] = values
        return table

    def get_forward_output_and_loss_func(
        self, validation_step: bool = False, logprobs_only: bool = False, *, batch: StepBatch | None = None
    ) -> Callable[[Iterator[Any], Any], tuple[Tensor, Callable[..., Any]]]:
        """The function that Megatron's schedule calls for every micro-batch.

        Args:
            validation_step: unused; upstream's signature.
            logprobs_only: return sequence log-probabilities instead of a loss.
            batch: the step of the micro-batches; needed for the loss.
        """

        def forward_step(micro_batches: Iterator[MicroBatch], model: Any) -> tuple[Tensor, Callable[..., Any]]:
            micro_batch = next(micro_batches).to(torch.device(torch.cuda.current_device()))
            row = micro_batch.row
            hidden = model(row.tokens[None], row.positions[None], row.segments)

            def log_probs(hidden: Tensor, non_loss_data: bool = True) -> Tensor:
                return self.sequence_log_probs(hidden, row)

            def loss(hidden: Tensor) -> tuple[Tensor, Tensor]:
                assert batch is not None
                return self._loss_and_metrics(hidden, micro_batch, batch)

            return hidden, log_probs if logprobs_only else loss

        return forward_step

    @torch.no_grad()
    def get_logprob_batch(self, batch: StepBatch) -> list[Tensor | None]:
        """Sequence log-probabilities [2 m] of each micro-batch under the current weights; None on earlier stages."""
        results = self.run_schedule(
            self.get_forward_output_and_loss_func(logprobs_only=True),
            batch.micro_batches,
            row_length=batch.row_length,
            forward_only=True,
            collects_values=True,
        )
        return [*results] or [None] * len(batch.micro_batches)

    @torch.no_grad()
    def get_ref_policy_logprobs(self, batch: StepBatch) -> list[Tensor | None]:
        """As :meth:`get_logprob_batch`, under the reference weights, in eval mode."""
        # the layers' flag: if the model is a list, as Megatron's distributed optimizer requires, this module's own
        # flag never changes
        training = self.get_model_module_list()[0].training
        # The reference uses the policy's FP8 scales, so that equal weights are rounded to equal numbers.
        with (
            cpu_weight_swap(self, self.ref_policy_state_dict, megatron_amp_O2=self.megatron_amp_O2),
            fp8.scales_kept(self),
        ):
            set_eval(self)
            try:
                return self.get_logprob_batch(batch)
            finally:
                if training:
                    set_train(self)

    def _loss_and_metrics(self, hidden: Tensor, micro_batch: MicroBatch, batch: StepBatch) -> tuple[Tensor, Tensor]:
        """The scaled loss that the schedule differentiates, and the metrics of the micro-batch's pairs."""
        token_log_probs = self.token_log_probs(hidden, micro_batch.row)
        pairs = pairs_of(token_log_probs, micro_batch, needs_reference=self.needs_reference)
        loss = objective(self.losses, pairs, self.options)
        metrics = pair_metrics(pairs, self.options, loss)
        # The schedule divides by the number of micro-batches, and the gradient reduction by the data-parallel size;
        # undoing both leaves the mean over the global batch.
        scale = len(batch.micro_batches) * self.data_parallel[1] / batch.num_global_pairs
        return loss.sum() * scale, metrics
