"""Layouts that a model can be split into, and the nearest ones to a layout that is impossible."""

import math
from typing import Any

from nemo_minordpo.config import TrainConfig

# Sizes that tensor parallelism divides.
_SPLIT_BY_TENSOR_PARALLEL = ("num_attention_heads", "num_query_groups", "ffn_hidden_size", "override_vocab_size")
_NUM_HINTS = 3


def layout_in_words(config: TrainConfig) -> str:
    """For example "2 nodes x 8 ranks: TP=8 x PP=2 x DP=1"."""
    trainer, model = config.trainer, config.model
    return (
        f"{trainer.num_nodes} nodes x {trainer.devices} ranks: TP={model.tensor_model_parallel_size} x "
        f"PP={model.pipeline_model_parallel_size} x DP={data_parallel_size(config)}"
    )


def data_parallel_size(config: TrainConfig) -> int:
    """Ranks / (TP x PP), rounded down, at least 1."""
    model = config.model
    ranks = config.trainer.num_nodes * config.trainer.devices
    return max(ranks // (model.tensor_model_parallel_size * model.pipeline_model_parallel_size), 1)


def layout_problems(model: Any, *, num_nodes: int, devices: int) -> list[str]:
    """What the layout does not divide, and the nearest layouts that work; empty if the layout works.

    Args:
        model: a model configuration, including the layout.
        num_nodes, devices: number of nodes, and of ranks per node.
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
    """Every (TP, PP) that divides model and ranks, sorted by the factors in which they differ from ``near``."""
    possible = [
        (tensor, pipeline)
        for tensor in _divisors(ranks)
        if all(not model.get(key) or model[key] % tensor == 0 for key in _SPLIT_BY_TENSOR_PARALLEL)
        for pipeline in _divisors(ranks // tensor)
        if model.num_layers % pipeline == 0
    ]

    def distance(layout: tuple[int, int]) -> float:
        return sum(abs(math.log2(size / wanted)) for size, wanted in zip(layout, near, strict=True))

    return sorted(possible, key=lambda layout: (distance(layout), -layout[0]))


def _divisors(number: int) -> list[int]:
    return [n for n in range(1, number + 1) if number % n == 0]
