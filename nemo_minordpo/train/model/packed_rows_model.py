"""NeMo-Aligner's DPO model on rows of packed sequences: its layers, its head, and Megatron's schedule over rows.

The only module that reads Megatron's `parallel_state`; the maths is in core/ and gets process groups as arguments.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from megatron.core import parallel_state, tensor_parallel
from megatron.core.models.gpt import GPTModel as MCoreGPTModel
from megatron.core.pipeline_parallel.schedules import get_forward_backward_func
from nemo_aligner.models.nlp.gpt.megatron_gpt_dpo_model import MegatronGPTDPOModel
from nemo_aligner.utils.train_utils import set_sync_funcs
from torch import Tensor

from nemo_minordpo.core.attention import KeyValueCache
from nemo_minordpo.core.flops import ModelSize
from nemo_minordpo.core.logprobs import (
    group_or_none,
    sequence_log_probs,
    vocab_parallel_argmax,
    vocab_parallel_log_probs,
)
from nemo_minordpo.core.pair_packing import PackedRow
from nemo_minordpo.layers.specs import PACKED_PAIRS
from nemo_minordpo.train.model import fp8
from nemo_minordpo.train.model.adapters import sharded_adapters
from nemo_minordpo.train.model.model_config import model_size
from nemo_minordpo.train.model.packed_gpt import PackedPairsGPTModel


class PackedRowsModel(MegatronGPTDPOModel):
    """Runs rows of packed sequences through a model that is split over ranks.

    Overrides of NeMo-Aligner 0.7.0's MegatronGPTDPOModel, and why:

    - `model_provider_func`: attention for packed pairs, in whatever layer spec the machine has; the last pipeline
      stage returns hidden states, so that the head runs in float32 (upstream casts the logits of a bf16 head: about
      0.14 nats of noise per response), skips the prompt and never stores the logits.
    - `finish_training_step`: gradients of query and key norms are summed over the tensor-parallel ranks, each of which
      has those of its own heads (upstream: only under sequence parallelism or Megatron's distributed optimizer).
    - `allreduce_gradients`: one gradient after another, in place (upstream copies all of them, on a single rank too).
    - `sharded_state_dict`: adapters are sharded too (NeMo: one file per rank, for one layout).
    - `next_tokens` replaces NeMo's generation, which needs a padded batch of its own and does not support packed rows.
    """

    def model_provider_func(self, pre_process: bool, post_process: bool) -> MCoreGPTModel:
        """NeMo's GPT model, with our attention in its layer spec and our forward."""
        self.spec_name = PACKED_PAIRS + self.spec_name.removeprefix(PACKED_PAIRS)
        model: Any = super().model_provider_func(pre_process, post_process)
        model.__class__ = PackedPairsGPTModel
        for name, parameter in model.named_parameters():
            if name.endswith(("q_layernorm.weight", "k_layernorm.weight")):
                # the attribute by which NeMo and Megatron mark weights whose gradients are summed over the
                # tensor-parallel ranks
                parameter.sequence_parallel = True
        return model

    def finish_training_step(self) -> None:
        """Reduce the gradients over the ranks."""
        section = self.cfg
        if (
            section.get("qk_layernorm", False)
            and section.tensor_model_parallel_size > 1
            # upstream handles these two cases
            and not section.get("sequence_parallel", False)
            and not self.use_mcore_dist_optim
        ):
            self.allreduce_sequence_parallel_gradients()
        super().finish_training_step()

    def allreduce_gradients(self) -> None:
        """Average the gradients over the data-parallel ranks; called without main gradients, i.e. in float32."""
        _, size = self.data_parallel
        if size == 1:
            return
        group: Any = parallel_state.get_data_parallel_group()
        for parameter in self.parameters():
            if parameter.grad is not None:
                torch.distributed.all_reduce(parameter.grad.div_(size), group=group)

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Eval mode within the context; evaluation there does not affect later training."""
        self.prepare_for_validation_step()
        with fp8.scales_kept(self):
            yield
        self.finish_validation_step()

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

    def sharded_state_dict(self, prefix: str = "") -> dict[str, Any]:
        """Megatron's sharded state of everything that training changes: the weights, or adapters and FP8 scales."""
        if not self.use_peft:
            return super().sharded_state_dict(prefix=prefix) or {}
        (model,) = self.get_model_module_list()
        state = sharded_adapters(model, prefix=f"{prefix}model.")
        if fp8.in_use(self):
            whole = model.sharded_state_dict(prefix=f"{prefix}model.")
            state |= {key: value for key, value in whole.items() if key.endswith("_extra_state")}
        return state

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
    def has_dropout(self) -> bool:
        """Whether the policy's outputs differ between training and evaluation."""
        own = any(self.cfg.get(key) for key in ("hidden_dropout", "ffn_dropout"))
        return own or (self.use_peft and self.cfg.peft.lora_tuning.adapter_dropout > 0)

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
        set_sync_funcs(self, forward_only)
        model: Any = self.model
        return get_forward_backward_func()(
            forward_step_func=forward_step,
            data_iterator=iter(rows),
            model=model,
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
