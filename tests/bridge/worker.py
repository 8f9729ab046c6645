"""Trains a Hugging Face model on random pairs, on Megatron-Bridge, in one of several ranks.

    torchrun --nproc-per-node=2 -m tests.bridge.worker HF OUTPUT --tensor 2

Packing, attention, head, losses and metrics are the project's own, on a model that Megatron-Bridge builds. The first
rank writes the loss and the gradient's norm of a few steps, and the weights after them, as transformers names them.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.bridge import stand_ins

bridge = stand_ins.prepare()

import torch  # noqa: E402
from megatron.core import parallel_state, tensor_parallel  # noqa: E402
from megatron.core.distributed import DistributedDataParallelConfig, finalize_model_grads  # noqa: E402
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec  # noqa: E402
from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer  # noqa: E402
from megatron.core.pipeline_parallel.schedules import get_forward_backward_func  # noqa: E402
from megatron.core.transformer.transformer_block import (  # noqa: E402
    TransformerBlockSubmodules,
    get_num_layers_to_build,
)
from megatron.core.utils import get_model_config, unwrap_model  # noqa: E402
from safetensors.torch import save_file  # noqa: E402
from torch import Tensor  # noqa: E402

from nemo_minordpo.core.logprobs import group_or_none, sequence_log_probs, vocab_parallel_log_probs  # noqa: E402
from nemo_minordpo.core.losses import LOSSES, Pairs, objective  # noqa: E402
from nemo_minordpo.host.norms import TorchNorm  # noqa: E402
from nemo_minordpo.layers.pair_attention import PairAttention  # noqa: E402
from nemo_minordpo.train.model.packed_gpt import PackedPairsGPTModel  # noqa: E402
from tests.bridge import pairs  # noqa: E402

_FUSIONS = (
    "bias_activation_fusion", "masked_softmax_fusion", "gradient_accumulation_fusion", "bias_dropout_fusion",
    "persist_layer_norm", "apply_rope_fusion", "cross_entropy_loss_fusion",
)  # fmt: skip


def packed_layers(config: Any) -> TransformerBlockSubmodules:
    """This stage's layers: Megatron-Core's local ones, with attention over packed pairs and norms of our own."""
    layer = get_gpt_layer_local_spec(normalization="RMSNorm", qk_layernorm=config.qk_layernorm)
    attention = layer.submodules.self_attention.submodules
    attention.core_attention = PairAttention
    norms = [(layer.submodules, "input_layernorm"), (layer.submodules, "pre_mlp_layernorm")]
    if config.qk_layernorm:
        norms += [(attention, "q_layernorm"), (attention, "k_layernorm")]
    for part, name in norms:
        setattr(part, name, TorchNorm)
    return TransformerBlockSubmodules(layer_specs=[layer] * get_num_layers_to_build(config), layer_norm=TorchNorm)


def built(folder: Path, given: argparse.Namespace) -> tuple[Any, list[Any]]:
    """The bridge of a Hugging Face folder, and its model at a layout, on packed pairs."""
    auto = bridge.AutoBridge.from_hf_pretrained(str(folder), torch_dtype=torch.float32)
    provider = auto.to_megatron_provider(load_weights=True)
    provider.transformer_layer_spec = packed_layers
    provider.tensor_model_parallel_size = given.tensor
    provider.pipeline_model_parallel_size = given.pipeline
    provider.sequence_parallel = given.sequence_parallel
    provider.use_cpu_initialization = True
    provider.params_dtype = provider.pipeline_dtype = torch.float32
    provider.bf16 = provider.fp16 = False
    for name in _FUSIONS:
        if hasattr(provider, name):
            setattr(provider, name, False)
    parallel_state.initialize_model_parallel(given.tensor, given.pipeline)
    tensor_parallel.model_parallel_cuda_manual_seed(1)
    provider.finalize()
    model = provider.provide_distributed_model(ddp_config=DistributedDataParallelConfig(), use_cpu_initialization=True)
    for chunk in unwrap_model(model):
        chunk.__class__ = PackedPairsGPTModel
    return auto, model


def log_probs_of(model: Any, hidden: Tensor, row: Any) -> Tensor:
    """[2 m], float64, nats, from the last stage's hidden states."""
    chunk = unwrap_model(model)
    if get_model_config(model).sequence_parallel:
        at_places = tensor_parallel.gather_from_sequence_parallel_region(hidden)[row.places, 0]
    else:
        at_places = tensor_parallel.copy_to_tensor_model_parallel_region(hidden[row.places, 0])
    tied = chunk.share_embeddings_and_output_weights
    weight = chunk.shared_embedding_or_output_weight() if tied else chunk.output_layer.weight
    group = group_or_none(parallel_state.get_tensor_model_parallel_group())
    token = vocab_parallel_log_probs(at_places, weight, row.targets, group=group, vocab_size=pairs.VOCABULARY)
    return sequence_log_probs(token, row.credits)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--tensor", type=int, default=1)
    parser.add_argument("--pipeline", type=int, default=1)
    parser.add_argument("--sequence-parallel", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo")
    auto, model = built(given.folder, given)
    config = get_model_config(model[0])
    config.finalize_model_grads_func = finalize_model_grads
    optimizer = get_megatron_optimizer(
        OptimizerConfig(
            optimizer="sgd", lr=pairs.LEARNING_RATE, sgd_momentum=0.0, weight_decay=0.0, clip_grad=pairs.CLIP,
            params_dtype=torch.float32,
        ),
        model,
    )  # fmt: skip
    rank, size = parallel_state.get_data_parallel_rank(), parallel_state.get_data_parallel_world_size()
    mine = [(row.mapped(torch.from_numpy), reference) for row, reference in pairs.rows()[rank::size]]
    options = pairs.options()

    def forward_step(rows: Iterator[Any], chunk: Any) -> Any:
        row, reference = next(rows)
        hidden = chunk(row.tokens[None], row.positions[None], row.segments)

        def loss(hidden: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
            log_probs = log_probs_of(chunk, hidden, row)
            chosen, rejected = log_probs.chunk(2)
            chosen_ratio, rejected_ratio = (log_probs - log_probs.new_tensor(reference)).chunk(2)
            counts = torch.ones_like(chosen, dtype=torch.int64)
            some = Pairs(
                chosen_log_ratio=chosen_ratio, rejected_log_ratio=rejected_ratio, chosen_log_probs=chosen,
                rejected_log_probs=rejected, shared_log_probs=chosen, chosen_num_tokens=counts,
                rejected_num_tokens=counts, reward_margin=torch.zeros_like(chosen),
            )  # fmt: skip
            total = objective({LOSSES[pairs.LOSS]: 1.0}, some, options).sum()
            return total * len(mine) * size / pairs.NUM_PAIRS, {"loss": total.detach() / pairs.NUM_PAIRS}

        return hidden, loss

    lines = []
    for _ in range(pairs.STEPS):
        for chunk in model:
            chunk.zero_grad_buffer()
        optimizer.zero_grad()
        results = get_forward_backward_func()(
            forward_step_func=forward_step, data_iterator=iter(mine), model=model, num_microbatches=len(mine),
            seq_length=pairs.ROW_LENGTH, micro_batch_size=1, forward_only=False,
        )  # fmt: skip
        total = torch.stack([one["loss"] for one in results]).sum() if results else torch.zeros((), dtype=torch.float64)
        if parallel_state.get_tensor_model_parallel_rank() != 0:
            total = torch.zeros_like(total)
        torch.distributed.all_reduce(total)
        _, norm, _ = optimizer.step()
        lines.append({"loss": total.item(), "grad_norm": float(norm)})
    weights = {name: tensor.clone() for name, tensor in auto.export_hf_weights(model, cpu=True, show_progress=False)}
    if torch.distributed.get_rank() == 0:
        given.output.mkdir(parents=True)
        save_file(weights, given.output / "model.safetensors")
        (given.output / "steps.json").write_text(json.dumps(lines))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
