"""A Megatron model on packed pairs: forward, backward, loss, metrics, log-probabilities and next tokens.

The only module that reads Megatron's `parallel_state`; the maths is in core/ and gets process groups as arguments.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from megatron.core import parallel_state, tensor_parallel
from megatron.core.pipeline_parallel.schedules import get_forward_backward_func
from omegaconf import DictConfig
from torch import Tensor

from nemo_minordpo.config import DPOSection
from nemo_minordpo.core.attention import KeyValueCache
from nemo_minordpo.core.flops import ModelSize
from nemo_minordpo.core.logprobs import (
    group_or_none,
    sequence_log_probs,
    vocab_parallel_argmax,
    vocab_parallel_log_probs,
)
from nemo_minordpo.core.losses import needs_reference, objective
from nemo_minordpo.core.metrics import PAIR_METRICS, pair_metrics, summary
from nemo_minordpo.core.objective import options_of
from nemo_minordpo.core.pair_packing import PackedRow
from nemo_minordpo.train.data.dataset import MicroBatch, StepBatch
from nemo_minordpo.train.model.model_config import model_size
from nemo_minordpo.train.model.preference_loss import losses_of, pairs_of


class PairModel:
    """What training computes with a model that is split over ranks; the same for every host (hosts/protocol.py).

    A host's model inherits from this class and provides:

    - `cfg`: the configuration from model_config.build_model_config;
    - `model`: Megatron's model as its schedule expects it, a module or a list of modules;
    - `padded_vocab_size`: the rows of the embedding, over all ranks;
    - `get_model_module_list`, `evaluating`, `get_ref_policy_logprobs`, and optionally `before_schedule`.
    """

    cfg: DictConfig
    model: Any
    padded_vocab_size: int

    def read_objective(self) -> None:
        """Set the losses from `cfg.dpo`; the host calls it once `cfg` is set."""
        section = DPOSection(**self.cfg.dpo)
        self.losses = losses_of(section)
        self.options = options_of(section)
        self.needs_reference = any(map(needs_reference, self.losses))

    def get_model_module_list(self) -> list[Any]:
        """Megatron's GPT models of this rank, without wrappers; named as NeMo names it."""
        raise NotImplementedError

    def evaluating(self) -> AbstractContextManager[None]:
        """Eval mode within the context; evaluation there does not affect later training."""
        raise NotImplementedError

    def get_ref_policy_logprobs(self, batch: StepBatch) -> list[Tensor | None]:
        """As :meth:`get_logprob_batch`, under the reference weights, in eval mode."""
        raise NotImplementedError

    def before_schedule(self, *, forward_only: bool) -> None:
        """Called before each pass."""

    def pair_metrics(self, batch: StepBatch, *, forward_only: bool) -> Tensor:
        """Forward (and backward): this rank's part of the metrics of a step's pairs; :meth:`gathered` combines them.

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

    def get_loss_and_metrics(self, batch: StepBatch, forward_only: bool) -> tuple[float, dict[str, float]]:
        """Forward (and backward) over a step's pairs.

        Returns:
            The loss in nats and the metrics of core/metrics.py, both over the pairs of all ranks, on every rank.
        """
        metrics = summary(self.gathered(self.pair_metrics(batch, forward_only=forward_only)))
        return metrics["loss"], metrics

    def get_forward_output_and_loss_func(
        self, validation_step: bool = False, logprobs_only: bool = False, *, batch: StepBatch | None = None
    ) -> Callable[[Iterator[Any], Any], tuple[Tensor, Callable[..., Any]]]:
        """The function that Megatron's schedule calls for every micro-batch.

        Args:
            validation_step: unused; NeMo-Aligner's signature.
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
    def next_tokens(
        self, tokens: Tensor, positions: Tensor, cache: KeyValueCache, *, places: Tensor, noise: Tensor | None
    ) -> Tensor:
        """The next token after each of some places in a row, on every rank of this model's replica.

        Args:
            tokens, positions: [1, S].
            cache: cache of the sequences in the row.
            places: [n], indices in the row.
            noise: [n, V]; None = greedy (core.logprobs.vocab_parallel_argmax).

        Returns:
            [n], token ids.
        """

        def forward_step(rows: Iterator[None], model: Any) -> tuple[Tensor, Callable[..., Any]]:
            return model(tokens, positions, cache), argmax

        def argmax(hidden: Tensor, non_loss_data: bool = True) -> Tensor:
            return self._through_head(vocab_parallel_argmax, hidden, places, noise)

        results = self.run_schedule(
            forward_step, [None], row_length=tokens.shape[1], forward_only=True, collects_values=True
        )
        chosen = results[0] if results else torch.zeros_like(places)
        pipeline_group: Any = parallel_state.get_pipeline_model_parallel_group()
        last_stage = parallel_state.get_pipeline_model_parallel_last_rank()
        torch.distributed.broadcast(chosen, src=last_stage, group=pipeline_group)
        return chosen

    def gathered(self, values: Tensor) -> Tensor:
        """Sum values over ranks: each data-parallel rank's last pipeline stage has a part, and zeros elsewhere.

        Tensor-parallel ranks have identical values, so only the first one's are counted.
        """
        if parallel_state.get_tensor_model_parallel_rank() != 0:
            values = torch.zeros_like(values)
        torch.distributed.all_reduce(values)
        return values

    @property
    def data_parallel(self) -> tuple[int, int]:
        """(rank, size) in the data-parallel group."""
        return parallel_state.get_data_parallel_rank(), parallel_state.get_data_parallel_world_size()

    @property
    def uses_fp8(self) -> bool:
        """Whether the model computes its matrix products in FP8."""
        return bool(self.cfg.get("fp8"))

    @property
    def has_dropout(self) -> bool:
        """Whether the policy's outputs differ between training and evaluation."""
        own = any(self.cfg.get(key) for key in ("hidden_dropout", "ffn_dropout"))
        adapters = self.cfg.peft
        return own or (adapters.peft_scheme == "lora" and adapters.lora_tuning.adapter_dropout > 0)

    @property
    def size(self) -> ModelSize:
        """The sizes that determine the model's floating-point operations."""
        return model_size(self.cfg, vocab_size=self.padded_vocab_size)

    def run_schedule(
        self,
        forward_step: Callable[..., Any],
        rows: Sequence[Any],
        *,
        row_length: int,
        forward_only: bool,
        collects_values: bool = False,
    ) -> list[Tensor]:
        """Run Megatron's schedule over rows; returns the last stage's result for each row, and [] on other stages."""
        self.before_schedule(forward_only=forward_only)
        return get_forward_backward_func()(
            forward_step_func=forward_step,
            # an iterator for each interleaved stage on this rank
            data_iterator=[iter(rows) for _ in self.get_model_module_list()],
            model=self.model,
            num_microbatches=len(rows),
            forward_only=forward_only,
            seq_length=row_length,
            micro_batch_size=1,
            collect_non_loss_data=collects_values,
        )

    def token_log_probs(self, hidden: Tensor, row: PackedRow[Tensor]) -> Tensor:
        """[T], nats, from the last stage's hidden states."""
        return self._through_head(vocab_parallel_log_probs, hidden, row.places, row.targets)

    def sequence_log_probs(self, hidden: Tensor, row: PackedRow[Tensor]) -> Tensor:
        """[2 m], float64, nats, from the last stage's hidden states."""
        return sequence_log_probs(self.token_log_probs(hidden, row), row.credits)

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

    def _through_head(self, function: Callable[..., Tensor], hidden: Tensor, places: Tensor, *more: Any) -> Tensor:
        """Call `function` (core/logprobs.py) on the last stage's hidden states at some places and the head's weight."""
        if self.cfg.get("sequence_parallel", False):
            at_places = tensor_parallel.gather_from_sequence_parallel_region(hidden)[places, 0]
        else:
            at_places = tensor_parallel.copy_to_tensor_model_parallel_region(hidden[places, 0])
        tensor_parallel_group: Any = parallel_state.get_tensor_model_parallel_group()
        weight = self._head_weight()
        # NeMo uses autocast if it has no low-precision weights; the head must not.
        with torch.autocast(hidden.device.type, enabled=False):
            return function(
                at_places.to(weight.dtype),
                weight,
                *more,
                group=group_or_none(tensor_parallel_group),
                vocab_size=self.cfg.get("unpadded_vocab_size"),  # written by import-hf
            )

    def _head_weight(self) -> Tensor:
        """[V / TP, H]."""
        model = self.get_model_module_list()[-1]
        if model.share_embeddings_and_output_weights:
            return model.shared_embedding_or_output_weight()
        return model.output_layer.weight
