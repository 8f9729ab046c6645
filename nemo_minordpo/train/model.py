"""The model: NeMo-Aligner's DPO model with its own forward step, loss and metrics.

The only module that reads Megatron's `parallel_state`; the mathematics lives in core/ and gets groups as arguments.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from lightning.pytorch.trainer.trainer import Trainer
from megatron.core import parallel_state, tensor_parallel
from megatron.core.models.gpt import GPTModel as MCoreGPTModel
from megatron.core.pipeline_parallel.schedules import get_forward_backward_func
from nemo_aligner.models.nlp.gpt.megatron_gpt_dpo_model import MegatronGPTDPOModel
from nemo_aligner.utils.train_utils import set_eval, set_sync_funcs, set_train
from nemo_aligner.utils.utils import cpu_weight_swap
from omegaconf import DictConfig
from torch import Tensor
from torch.nn.functional import linear

from nemo_minordpo.core.logprobs import (
    group_or_none,
    mask_padded_vocabulary,
    sequence_log_probs,
    vocab_parallel_token_log_probs,
)
from nemo_minordpo.core.losses import preference_loss
from nemo_minordpo.core.metrics import PAIR_METRICS, means_of, pair_metric_sums
from nemo_minordpo.train.dataset import MicroBatch, StepBatch, split_pairs


class HiddenStatesGPTModel(MCoreGPTModel):
    """Megatron's GPT model without its head: the last stage gives hidden states, too.

    The loss applies the head itself, in float32 and to response positions only.
    """

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Hidden states [S, B, H] ([S / TP, B, H] under sequence parallelism) of this pipeline stage."""
        post_process, self.post_process = self.post_process, False
        try:
            return super().forward(*args, **kwargs)
        finally:
            self.post_process = post_process


class MegatronGPTMinorDPOModel(MegatronGPTDPOModel):
    """DPO, DPOP, MinorDPO and upstream's losses, tensor- and pipeline-parallel.

    Overrides of NeMo-Aligner 0.7.0's MegatronGPTDPOModel, and why:

    - `__init__`: beta has no default; the loss is chosen from core/losses.py.
    - `model_provider_func`: the pipeline's last stage returns hidden states, so that the head runs in float32
      (upstream casts the logits of a bf16 head: about 0.14 nat of noise a response) and skips the prompt.
    - `get_forward_output_and_loss_func`: sums per response of response-only log-probabilities; no collective in a
      micro-batch (upstream: four).
    - `get_loss_and_metrics`: the mean over the valid pairs of the whole global batch (upstream averages the means
      of micro-batches); one collective a step (upstream: eight broadcasts and as many `.item()`).
    - `get_logprob_batch`, `get_ref_policy_logprobs`: one number a response, evaluated in eval mode (upstream: a
      number a token, with dropout where the checkpoint has any).
    - `set_inference_config` and generation: not supported during training; export the model for it.
    """

    def __init__(self, cfg: DictConfig, trainer: Trainer) -> None:
        """Args as NeMo passes them; `cfg.dpo` holds the objective (config.DPOSection)."""
        if cfg.get("context_parallel_size", 1) > 1 or cfg.get("virtual_pipeline_model_parallel_size") is not None:
            raise ValueError("context parallelism and virtual pipeline stages are not supported")
        super().__init__(cfg, trainer=trainer)
        self.beta = float(cfg.dpo.ref_policy_kl_penalty)
        self.dpop_lambda = float(cfg.dpo.dpop_lambda)

    def model_provider_func(self, pre_process: bool, post_process: bool) -> MCoreGPTModel:
        """NeMo's own GPT model; only its forward is another one."""
        model: Any = super().model_provider_func(pre_process, post_process)
        model.__class__ = HiddenStatesGPTModel
        return model

    def get_loss_and_metrics(self, batch: StepBatch, forward_only: bool) -> tuple[float, dict[str, float]]:
        """Forward (and backward) over a step's pairs.

        Returns:
            The loss in nats and the metrics of core/metrics.py, both over the valid pairs of all ranks, on every rank.
        """
        sums = self._pair_sums(batch, forward_only)
        torch.distributed.all_reduce(sums)
        metrics = means_of(sums)
        return metrics["loss"], metrics

    def validation_sums(self, batch: StepBatch) -> Tensor:
        """This rank's metric sums of a batch, without gradients; they add up over batches and ranks."""
        return self._pair_sums(batch, forward_only=True)

    def get_forward_output_and_loss_func(
        self, validation_step: bool = False, logprobs_only: bool = False, *, batch: StepBatch | None = None
    ) -> Callable[[Iterator[Any], Any], tuple[Tensor, Callable[..., Any]]]:
        """The function that Megatron's schedule calls for every micro-batch.

        Args:
            validation_step: unused; upstream's signature.
            logprobs_only: give sequence log-probabilities instead of a loss.
            batch: the step that the micro-batches belong to; needed for the loss.
        """

        def forward_step(micro_batches: Iterator[Any], model: Any) -> tuple[Tensor, Callable[..., Any]]:
            micro_batch, reference_log_probs = next(micro_batches)
            micro_batch = micro_batch.to(torch.cuda.current_device())
            num_rows, length = micro_batch.tokens.shape
            position_ids = torch.arange(length, device=micro_batch.tokens.device).expand(num_rows, -1)
            # No mask: attention is causal, and padding stands at the end, where no response token looks.
            hidden = model(input_ids=micro_batch.tokens, position_ids=position_ids, attention_mask=None)

            def log_probs(hidden: Tensor, non_loss_data: bool = True) -> Tensor:
                return self._sequence_log_probs(hidden, micro_batch)

            def loss(hidden: Tensor) -> tuple[Tensor, Tensor]:
                assert batch is not None
                return self._loss_and_sums(hidden, micro_batch, reference_log_probs, batch)

            return hidden, log_probs if logprobs_only else loss

        return forward_step

    @torch.no_grad()
    def get_logprob_batch(self, batch: StepBatch) -> list[Tensor | None]:
        """Sequence log-probabilities [2 m] of each micro-batch under the present weights; None off the last stage."""
        results = self._run_schedule(batch, [None] * len(batch.micro_batches), forward_only=True, logprobs_only=True)
        return [*results] or [None] * len(batch.micro_batches)

    @torch.no_grad()
    def get_ref_policy_logprobs(self, batch: StepBatch) -> list[Tensor | None]:
        """As :meth:`get_logprob_batch`, under the reference weights, in eval mode."""
        training = self.training
        with cpu_weight_swap(self, self.ref_policy_state_dict, megatron_amp_O2=self.megatron_amp_O2):
            set_eval(self)
            try:
                return self.get_logprob_batch(batch)
            finally:
                if training:
                    set_train(self)

    def _pair_sums(self, batch: StepBatch, forward_only: bool) -> Tensor:
        """[len(PAIR_METRICS) + 1], float64; zero except on one tensor-parallel rank of the last stage."""
        references = self.get_ref_policy_logprobs(batch)
        results = self._run_schedule(batch, references, forward_only=forward_only, logprobs_only=False)
        sums = torch.zeros(len(PAIR_METRICS) + 1, dtype=torch.float64, device=torch.cuda.current_device())
        if results and parallel_state.get_tensor_model_parallel_rank() == 0:
            sums += torch.stack(results).sum(dim=0)
        return sums

    def _run_schedule(
        self, batch: StepBatch, references: list[Tensor | None], *, forward_only: bool, logprobs_only: bool
    ) -> list[Tensor]:
        set_sync_funcs(self, forward_only)
        model: Any = self.model
        return get_forward_backward_func()(
            forward_step_func=self.get_forward_output_and_loss_func(logprobs_only=logprobs_only, batch=batch),
            data_iterator=iter(zip(batch.micro_batches, references, strict=True)),
            model=model,
            num_microbatches=len(batch.micro_batches),
            forward_only=forward_only,
            seq_length=batch.seq_length,
            micro_batch_size=batch.micro_batches[0].tokens.shape[0],
            collect_non_loss_data=logprobs_only,
        )

    def _loss_and_sums(
        self, hidden: Tensor, micro_batch: MicroBatch, reference_log_probs: Tensor, batch: StepBatch
    ) -> tuple[Tensor, Tensor]:
        """The scaled loss that the schedule differentiates, and the metric sums of the micro-batch."""
        log_probs = self._sequence_log_probs(hidden, micro_batch)
        chosen_log_probs, rejected_log_probs = split_pairs(log_probs.float())
        chosen_log_ratio, rejected_log_ratio = split_pairs((log_probs - reference_log_probs).float())
        objective = self.cfg.dpo
        loss = objective.preference_loss_weight * preference_loss(
            objective.preference_loss,
            chosen_log_ratio=chosen_log_ratio,
            rejected_log_ratio=rejected_log_ratio,
            beta=self.beta,
            dpop_lambda=self.dpop_lambda,
            reward_margin=objective.gt_reward_scale * micro_batch.reward_margin,
        )
        if objective.sft_loss_weight:
            loss = loss - objective.sft_loss_weight * chosen_log_probs
        sums = pair_metric_sums(
            loss=loss,
            chosen_log_ratio=chosen_log_ratio,
            rejected_log_ratio=rejected_log_ratio,
            chosen_log_probs=chosen_log_probs,
            rejected_log_probs=rejected_log_probs,
            valid=micro_batch.valid,
            beta=self.beta,
        )
        # The schedule divides by the number of micro-batches and the gradient reduction by the data-parallel size;
        # what is left is the mean over the global batch.
        scale = len(batch.micro_batches) * parallel_state.get_data_parallel_world_size() / batch.num_global_pairs
        return torch.where(micro_batch.valid, loss, 0.0).sum() * scale, sums

    def _sequence_log_probs(self, hidden: Tensor, micro_batch: MicroBatch) -> Tensor:
        """[2 m], float64, nats, from the last stage's hidden states."""
        if self.cfg.get("sequence_parallel", False):
            hidden = tensor_parallel.gather_from_sequence_parallel_region(hidden)
        else:
            hidden = tensor_parallel.copy_to_tensor_model_parallel_region(hidden)
        at_responses = hidden.flatten(0, 1)[micro_batch.response_index]
        logits = linear(at_responses.float(), self._head_weight().float())
        tensor_parallel_group: Any = parallel_state.get_tensor_model_parallel_group()
        group = group_or_none(tensor_parallel_group)
        if vocab_size := self.cfg.get("unpadded_vocab_size"):  # written by import-hf
            logits = mask_padded_vocabulary(logits, vocab_size=vocab_size, group=group)
        token_log_probs = vocab_parallel_token_log_probs(logits, micro_batch.targets, group=group)
        return sequence_log_probs(
            token_log_probs, row=micro_batch.row, column=micro_batch.column, num_rows=len(micro_batch.tokens)
        )

    def _head_weight(self) -> Tensor:
        """[V / TP, H]."""
        model = self.get_model_module_list()[-1]
        if model.share_embeddings_and_output_weights:
            return model.shared_embedding_or_output_weight()
        return model.output_layer.weight
