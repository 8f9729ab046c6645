"""The model that Megatron-Bridge builds from a Hugging Face folder, on packed pairs."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from megatron.bridge import AutoBridge
from megatron.bridge.peft.lora import LoRA
from megatron.bridge.utils.vocab_utils import calculate_padded_vocab_size
from megatron.core import parallel_state
from megatron.core.distributed import DistributedDataParallelConfig, finalize_model_grads
from megatron.core.models.gpt import GPTModel
from megatron.core.utils import get_model_config, unwrap_model
from omegaconf import DictConfig
from torch import Tensor

from nemo_minordpo import host
from nemo_minordpo.config import TrainConfig
from nemo_minordpo.errors import UserError
from nemo_minordpo.train.data.dataset import StepBatch
from nemo_minordpo.train.hosts.bridge.layers import pack_pairs
from nemo_minordpo.train.model import fp8
from nemo_minordpo.train.model.packed_gpt import PackedPairsGPTModel
from nemo_minordpo.train.model.pair_model import PairModel

# of the settings, which leave them to `fusions=te`; Megatron-Bridge's own defaults need Apex
_CHOSEN_FUSIONS = ("gradient_accumulation_fusion", "bias_activation_fusion", "apply_rope_fusion")
# need CUDA
_FUSIONS = (
    "masked_softmax_fusion", "bias_dropout_fusion", "persist_layer_norm", "cross_entropy_loss_fusion",
)  # fmt: skip
_FP8 = ("fp8_margin", "fp8_amax_history_len", "fp8_amax_compute_algo")
# NeMo's names of settings, and Megatron-Core's
_RECOMPUTATION = {
    "activations_checkpoint_granularity": "recompute_granularity",
    "activations_checkpoint_method": "recompute_method",
    "activations_checkpoint_num_layers": "recompute_num_layers",
}
_LINEAR_LAYERS = {"attention_qkv": "linear_qkv", "attention_dense": "linear_proj", "mlp_fc1": "linear_fc1",
                  "mlp_fc2": "linear_fc2"}  # fmt: skip


class BridgeModel(PairModel):
    """Megatron-Core's GPT model in distributed data parallel, as Megatron-Bridge provides it."""

    def __init__(self, cfg: DictConfig, model: list[Any], *, live_reference: bool) -> None:
        """
        Args:
            cfg: from model_config.build_model_config.
            model: the wrapped modules of this rank.
            live_reference: keep a copy of the weights for :meth:`get_ref_policy_logprobs`.
        """
        self.cfg = cfg
        self.model = model
        self.config = get_model_config(model[0])
        self.padded_vocab_size = calculate_padded_vocab_size(
            self.config.vocab_size,
            self.config.make_vocab_size_divisible_by,
            parallel_state.get_tensor_model_parallel_world_size(),
        )
        self.read_objective()
        self._reference = [weight.detach().cpu().clone() for weight in self._weights()] if live_reference else None

    def get_model_module_list(self) -> list[Any]:
        return list(unwrap_model(self.model))

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        # gradients are reduced only after a backward pass: the schedule calls finalize_model_grads in training
        for module in self.model:
            module.eval()
        try:
            with fp8.scales_kept(self):
                yield
        finally:
            for module in self.model:
                module.train()

    @torch.no_grad()
    def get_ref_policy_logprobs(self, batch: StepBatch) -> list[Tensor | None]:
        assert self._reference is not None
        policy = [weight.detach().cpu().clone() for weight in self._weights()]
        self._load(self._reference)
        try:
            with self.evaluating():
                return self.get_logprob_batch(batch)
        finally:
            self._load(policy)

    def _weights(self) -> list[Tensor]:
        return [weight for module in self.get_model_module_list() for weight in module.parameters()]

    def _load(self, values: list[Tensor]) -> None:
        for weight, value in zip(self._weights(), values, strict=True):
            weight.copy_(value)


def build_model(config: TrainConfig, model_config: DictConfig, auto: AutoBridge) -> BridgeModel:
    """Load the weights of a Hugging Face folder at the run's layout, once the process groups exist.

    Args:
        config: the run's.
        model_config: from model_config.build_model_config.
        auto: the folder's bridge.

    Raises:
        UserError: layers that cannot take packed pairs.
    """
    section = config.model
    low = config.trainer.precision != "32-true"
    provider: Any = auto.to_megatron_provider(load_weights=True)
    pack_pairs(provider)
    _configure(provider, config)
    if section.peft.peft_scheme == "lora":
        adapters = _adapters(model_config.peft.lora_tuning)
        provider.register_pre_wrap_hook(lambda modules: adapters(modules, training=True))  # after loading the weights
    provider.finalize()
    distributed = DistributedDataParallelConfig(
        use_distributed_optimizer=section.optim.name == "mcore_distributed_optim", grad_reduce_in_fp32=low
    )
    model = provider.provide_distributed_model(
        ddp_config=distributed, use_cpu_initialization=provider.use_cpu_initialization
    )
    for module in unwrap_model(model):
        if type(module) is not GPTModel:  # its own forward would be lost
            raise UserError(
                f"host=bridge: Megatron-Bridge builds this model as {type(module).__name__}, not as GPTModel"
            )
        module.__class__ = PackedPairsGPTModel
    get_model_config(model[0]).finalize_model_grads_func = finalize_model_grads
    return BridgeModel(model_config, model, live_reference=section.dpo.reference_log_probs == "live")


def _configure(provider: Any, config: TrainConfig) -> None:
    """Set the layout, the precision and the kernels of a provider."""
    section = config.model
    low = config.trainer.precision != "32-true"
    provider.tensor_model_parallel_size = section.tensor_model_parallel_size
    provider.pipeline_model_parallel_size = section.pipeline_model_parallel_size
    provider.virtual_pipeline_model_parallel_size = section.virtual_pipeline_model_parallel_size
    provider.expert_model_parallel_size = section.expert_model_parallel_size
    provider.expert_tensor_parallel_size = section.tensor_model_parallel_size
    provider.sequence_parallel = section.sequence_parallel
    provider.moe_aux_loss_coeff = section.moe_aux_loss_coeff
    provider.params_dtype = provider.pipeline_dtype = torch.bfloat16 if low else torch.float32
    provider.bf16, provider.fp16 = low, False
    provider.attention_dropout = provider.hidden_dropout = 0.0
    provider.should_pad_vocab = True  # to a multiple of 128 x TP; the head leaves the padding out
    for theirs, ours in _RECOMPUTATION.items():
        setattr(provider, ours, getattr(section, theirs))
    if section.fp8:
        provider.fp8 = "hybrid" if section.fp8_hybrid else "e4m3"
        provider.fp8_recipe = "delayed"  # the one whose scales model/fp8.py sets and keeps
        for name in _FP8:
            if (value := getattr(section, name)) is not None:
                setattr(provider, name, value)
    for name in _CHOSEN_FUSIONS:
        setattr(provider, name, bool(getattr(section, name)))
    if not host.has_cuda():
        provider.use_cpu_initialization = True
        for name in _FUSIONS:
            if hasattr(provider, name):
                setattr(provider, name, False)


def _adapters(tuning: DictConfig) -> LoRA:
    """Megatron-Bridge's adapters from NeMo's description (config/lora.py)."""
    return LoRA(
        target_modules=[_LINEAR_LAYERS[name] for name in tuning.target_modules],
        dim=tuning.adapter_dim,
        alpha=tuning.alpha,
        dropout=tuning.adapter_dropout,
    )
