"""Memory of a rank in training, by what it is for: an estimate from sizes alone.

After Korthikanti et al. 2022 (arXiv 2205.05198), for layers whose attention keeps no scores. V = vocabulary, H = hidden
size, F = MLP's, A = heads x head size, G = query groups x head size, T = tensor-parallel, P = pipeline-parallel size.
"""

from dataclasses import dataclass

from nemo_minordpo.core.flops import ModelSize
from nemo_minordpo.core.logprobs import LOGITS_BYTES_CPU, LOGITS_BYTES_CUDA

GIB = 2**30
# Interpreter, libraries and buffers that grow with nothing here: measured on a CPU, assumed on a GPU (CUDA, NCCL).
_OVERHEAD_CPU, _OVERHEAD_CUDA = 0.9 * GIB, 2.0 * GIB


@dataclass(frozen=True, kw_only=True)
class Numerics:
    """Bytes of one weight and of what belongs to it, on a rank.

    optimizer: moments, and float32 weights where the model computes with others.
    activation: of one number that is kept for the backward pass.
    """

    weight: float
    gradient: float
    optimizer: float
    activation: int


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How the model lies on ranks, and how much a rank has in flight.

    row_length: places of a row. num_rows: rows of a step and rank. num_targets: response tokens of a row.
    """

    tensor_parallel: int
    pipeline_parallel: int
    sequence_parallel: bool
    recompute: bool
    row_length: int
    num_rows: int
    num_targets: int


@dataclass(frozen=True)
class RankMemory:
    """Bytes on the fullest rank; `parameters` counts its weights."""

    parameters: int
    weights: float
    gradients: float
    optimizer: float
    activations: float
    head: float
    overhead: float

    @property
    def total(self) -> float:
        return self.weights + self.gradients + self.optimizer + self.activations + self.head + self.overhead


def fullest_rank(size: ModelSize, layout: Layout, numerics: Numerics, *, tied: bool, cuda: bool) -> RankMemory:
    """The larger of the first and the last pipeline stage; those between have less of everything."""
    stages = {0, layout.pipeline_parallel - 1}
    return max((_stage(stage, size, layout, numerics, tied, cuda) for stage in stages), key=lambda memory: memory.total)


def num_parameters(size: ModelSize, *, stage: int, tensor_parallel: int, pipeline_parallel: int, tied: bool) -> int:
    """Weights of a rank. Biases and norms of queries and keys, below a thousandth of them, do not count.

    ``L / P * ((2 A + 2 G) H + 3 F H) / T + 2 L H / P``, V H / T of the embedding on the first and of the head on the
    last stage; one for both where they are tied on one stage.
    """
    hidden = size.hidden_size
    vocabulary = -(-size.vocab_size // tensor_parallel) * hidden
    total = size.num_layers // pipeline_parallel * (size.weights_of_layer // tensor_parallel + 2 * hidden)
    is_last = stage == pipeline_parallel - 1
    if stage == 0:
        total += vocabulary
    if is_last:
        total += hidden + (0 if tied and stage == 0 else vocabulary)
    return total


def _stage(stage: int, size: ModelSize, layout: Layout, numerics: Numerics, tied: bool, cuda: bool) -> RankMemory:
    parameters = num_parameters(
        size, stage=stage, tied=tied,
        tensor_parallel=layout.tensor_parallel, pipeline_parallel=layout.pipeline_parallel,
    )  # fmt: skip
    is_last = stage == layout.pipeline_parallel - 1
    # one forward, one backward: a stage has as many rows in flight as stages follow it, and its own
    in_flight = min(layout.pipeline_parallel - stage, layout.num_rows)
    layers = size.num_layers // layout.pipeline_parallel
    layer = _layer_numbers(size, layout)
    boundary = layout.row_length * size.hidden_size / (layout.tensor_parallel if layout.sequence_parallel else 1)
    kept = in_flight * layers * boundary + layer if layout.recompute else in_flight * layers * layer
    if not cuda and layout.num_rows > in_flight:
        # the heap is never given back (host/cuda.py), and the next row fits into few of the last one's pieces
        kept *= 2
    return RankMemory(
        parameters=parameters,
        weights=parameters * numerics.weight,
        gradients=parameters * numerics.gradient,
        optimizer=parameters * numerics.optimizer,
        activations=kept * numerics.activation,
        head=_head_bytes(size, layout, cuda=cuda) if is_last else 0.0,
        overhead=_OVERHEAD_CUDA if cuda else _OVERHEAD_CPU,
    )


def _layer_numbers(size: ModelSize, layout: Layout) -> float:
    """Numbers that a layer keeps of a row.

    Inputs of norms and linear layers 4 H; queries, keys and values A + 2 G, rotated A + G, attended A; what enters the
    MLP's activation, 2 F where it is gated, and what leaves it.
    """
    attended, grouped = size.num_heads * size.head_size, size.num_query_groups * size.head_size
    split = 3 * attended + 3 * grouped + (3 if size.gated else 2) * size.ffn_hidden_size
    whole = 4 * size.hidden_size / (layout.tensor_parallel if layout.sequence_parallel else 1)
    return layout.row_length * (split / layout.tensor_parallel + whole)


def _head_bytes(size: ModelSize, layout: Layout, *, cuda: bool) -> float:
    """Three float32 copies of the response places' hidden states, and two blocks of logits (core/logprobs.py)."""
    block = LOGITS_BYTES_CUDA if cuda else LOGITS_BYTES_CPU
    return 3 * 4 * layout.num_targets * size.hidden_size + 2 * block
