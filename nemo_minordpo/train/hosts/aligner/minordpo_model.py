"""NeMo-Aligner's DPO model on packed pairs."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch.trainer.trainer import Trainer
from megatron.core import parallel_state
from megatron.core.models.gpt import GPTModel as MCoreGPTModel
from nemo_aligner.models.nlp.gpt.megatron_gpt_dpo_model import MegatronGPTDPOModel
from nemo_aligner.utils.train_utils import set_eval, set_sync_funcs, set_train
from nemo_aligner.utils.utils import cpu_weight_swap
from omegaconf import DictConfig
from torch import Tensor

from nemo_minordpo.layers.specs import PACKED_PAIRS
from nemo_minordpo.train.data.dataset import StepBatch
from nemo_minordpo.train.hosts.aligner.adapters import sharded_adapters
from nemo_minordpo.train.model import fp8
from nemo_minordpo.train.model.packed_gpt import PackedPairsGPTModel
from nemo_minordpo.train.model.pair_model import PairModel


class MegatronGPTMinorDPOModel(PairModel, MegatronGPTDPOModel):
    """DPO, DPOP, MinorDPO and upstream's losses, tensor- and pipeline-parallel, in NeMo-Aligner.

    Overrides of NeMo-Aligner 0.7.0's MegatronGPTDPOModel, and why. From :class:`PairModel`:

    - `get_forward_output_and_loss_func`: packed pairs whose shared tokens are computed once; log-probabilities of
      response tokens only, summed per response; no collective per micro-batch except in the head (upstream: four).
    - `get_loss_and_metrics`: the mean over the pairs of the whole global batch (upstream averages the means of
      micro-batches); one collective per step (upstream: eight broadcasts and as many `.item()`).
    - `get_logprob_batch`: one number per response, evaluated in eval mode (upstream: one per token, with dropout if the
      checkpoint has any). Training reads the reference's from a cache (reference_cache.py); upstream swaps all weights
      at every step to compute them.
    - `next_tokens` replaces NeMo's generation, which needs a padded batch of its own and does not support packed rows.

    Here:

    - `__init__`: beta has no default; the losses are those of core/losses.py, or the user's own.
    - `model_provider_func`: attention for packed pairs, in whatever layer spec the machine has; the last pipeline
      stage returns hidden states, so that the head runs in float32 (upstream casts the logits of a bf16 head: about
      0.14 nats of noise per response), skips the prompt and never stores the logits.
    - `finish_training_step`: gradients of query and key norms are summed over the tensor-parallel ranks, each of which
      has those of its own heads (upstream: only under sequence parallelism or Megatron's distributed optimizer).
    - `allreduce_gradients`: one gradient after another, in place (upstream copies all of them, on a single rank too).
    - `sharded_state_dict`: adapters are sharded too (NeMo: one file per rank, for one layout).
    - `get_ref_policy_logprobs`: as `get_logprob_batch`.
    """

    def __init__(self, cfg: DictConfig, trainer: Trainer) -> None:
        """Arguments as passed by NeMo; `cfg.dpo` is the objective (config.DPOSection)."""
        super().__init__(cfg, trainer=trainer)
        self.read_objective()

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

    def get_model_module_list(self) -> list[Any]:
        """NeMo's; PairModel declares it."""
        return MegatronGPTDPOModel.get_model_module_list(self)

    def before_schedule(self, *, forward_only: bool) -> None:
        set_sync_funcs(self, forward_only)

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
        self.prepare_for_validation_step()
        with fp8.scales_kept(self):
            yield
        self.finish_validation_step()

    @torch.no_grad()
    def get_ref_policy_logprobs(self, batch: StepBatch) -> list[Tensor | None]:
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

    def sharded_state_dict(self, prefix: str = "") -> dict[str, Any]:
        """Megatron's sharded state of everything that training changes: the weights, or adapters and FP8 scales."""
        if not self.use_peft:
            return super().sharded_state_dict(prefix=prefix) or {}
        (model,) = self.get_model_module_list()
        state = sharded_adapters(model, prefix=f"{prefix}model.")
        if self.uses_fp8:
            whole = model.sharded_state_dict(prefix=f"{prefix}model.")
            state |= {key: value for key, value in whole.items() if key.endswith("_extra_state")}
        return state
