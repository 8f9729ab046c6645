"""Which layouts a model can be split into, and which are the nearest to one that it cannot."""

import math
from typing import Any

from nemo_minordpo.config import TrainConfig

# Sizes that a layer is split by.
_SPLIT_BY_TENSOR_PARALLEL = ("num_attention_heads", "num_query_groups", "ffn_hidden_size", "override_vocab_size")
_NUM_HINTS = 3


def layout_in_words(config: TrainConfig) -> str:
    """Such as "2 nodes x 8 ranks: TP=8 x PP=2 x DP=1"."""
    trainer, model = config.trainer, config.model
    return (
        f"{trainer.num_nodes} nodes x {trainer.devices} ranks: TP={model.tensor_model_parallel_size} x "
        f"PP={model.pipeline_model_parallel_size} x DP={data_parallel_size(config)}"
    )


def data_parallel_size(config: TrainConfig) -> int:
    """What is left of the ranks; at least 1, also where the layout does not divide them."""
    model = config.model
    ranks = config.trainer.num_nodes * config.trainer.devices
    return max(ranks // (model.tensor_model_parallel_size * model.pipeline_model_parallel_size), 1)


def layout_problems(model: Any, *, num_nodes: int, devices: int) -> list[str]:
    """What TP x PP x DP does not divide, and the nearest layouts that work; empty: nothing.

    Args:
        model: a model configuration, with the layout in it.
        num_nodes, devices: nodes, and ranks of a node.
    """
    tensor, pipeline = model.tensor_model_parallel_size, model.pipeline_model_parallel_size
    ranks = num_nodes * devices
    problems = [
        f"model.tensor_model_parallel_size={tensor} does not divide the model's {key}={model[key]}"
        for key in _SPLIT_BY_TENSOR_PARALLEL
        if model.get(key) and model[key] % tensor
    ]
    if model.num_layers % pipeline:
        problems.append(
            f"model.pipeline_model_parallel_size={pipeline} does not divide the model's num_layers={model.num_layers}"
        )
    if ranks % (tensor * pipeline):
        problems.append(
            f"{ranks} ranks (trainer.num_nodes={num_nodes} x trainer.devices={devices}) cannot be divided by "
            f"tensor_model_parallel_size x pipeline_model_parallel_size = {tensor * pipeline}"
        )
    if not problems:
        return []
    nearest = "; ".join(
        f"model.tensor_model_parallel_size={t} model.pipeline_model_parallel_size={p} (DP={ranks // (t * p)})"
        for t, p in possible_layouts(model, ranks=ranks, near=(tensor, pipeline))[:_NUM_HINTS]
    )
    return [*problems, f"nearest layouts of {ranks} ranks that work: {nearest}"]


def possible_layouts(model: Any, *, ranks: int, near: tuple[int, int]) -> list[tuple[int, int]]:
    """Every (TP, PP) that divides model and ranks, those first that differ least from ``near``, in factors."""
    found = [
        (tensor, pipeline)
        for tensor in _divisors(ranks)
        if all(not model.get(key) or model[key] % tensor == 0 for key in _SPLIT_BY_TENSOR_PARALLEL)
        for pipeline in _divisors(ranks // tensor)
        if model.num_layers % pipeline == 0
    ]

    def distance(layout: tuple[int, int]) -> float:
        return sum(abs(math.log2(size / wanted)) for size, wanted in zip(layout, near, strict=True))

    return sorted(found, key=lambda layout: (distance(layout), -layout[0]))


def _divisors(number: int) -> list[int]:
    return [n for n in range(1, number + 1) if number % n == 0]
