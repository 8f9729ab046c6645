"""Estimate a rank's memory in training by purpose, from sizes alone.

After Korthikanti et al. 2022 (arXiv 2205.05198), for attention that stores no scores. L = layers, V = vocabulary, H =
hidden size, F = MLP size, A = heads x head size, G = query groups x head size, T, P = tensor-, pipeline-parallel size.
"""

from dataclasses import dataclass

from nemo_minordpo.core.flops import ModelSize
from nemo_minordpo.core.logprobs import LOGITS_BYTES_CPU, LOGITS_BYTES_CUDA

GIB = 2**30
# Interpreter, libraries and buffers, independent of all sizes: measured on a CPU, assumed for a GPU (CUDA, NCCL).
_OVERHEAD_CPU, _OVERHEAD_CUDA = 0.9 * GIB, 2.0 * GIB


@dataclass(frozen=True, kw_only=True)
class Numerics:
    """Bytes per weight on a rank, and per activation.

    gradient: of a trained weight, in all passes of a step. optimizer: moments, plus float32 weights if the model
    computes in another type. activation: per number saved for the backward pass.
    new_gradient: of a weight whose gradient one backward pass adds, until it is added; of the largest weight.
    """

    weight: float
    gradient: float
    optimizer: float
    activation: int
    new_gradient: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How the model is split over ranks, and how much a rank has in flight.

    row_length: places per row. num_rows: rows per step and rank. num_targets: response tokens per row.
    interleaved: pipeline stages on each rank.
    expert_parallel: ranks that a mixture's experts are spread over, each expert split like the rest of the model.
    """

    tensor_parallel: int
    pipeline_parallel: int
    sequence_parallel: bool
    recompute: bool
    row_length: int
    num_rows: int
    num_targets: int
    interleaved: int = 1
    expert_parallel: int = 1


PURPOSES = ("weights", "gradients", "optimizer", "activations", "vocabulary", "head", "overhead")


@dataclass(frozen=True)
class RankMemory:
    """Bytes on the fullest rank; `parameters` counts its weights.

    vocabulary: the gradient of the embedding or of the head that one backward pass adds to the others', [V / T, H].
    """

    parameters: int
    weights: float
    gradients: float
    optimizer: float
    activations: float
    vocabulary: float
    head: float
    overhead: float

    @property
    def total(self) -> float:
        return sum(getattr(self, name) for name in PURPOSES)


def fullest_rank(size: ModelSize, layout: Layout, numerics: Numerics, *, tied: bool, cuda: bool) -> RankMemory:
    """The larger of the first and last pipeline stages; stages in between need less of everything."""
    stages = {0, layout.pipeline_parallel - 1}
    return max((_stage(stage, size, layout, numerics, tied, cuda) for stage in stages), key=lambda memory: memory.total)


def num_parameters(
    size: ModelSize, *, stage: int, tensor_parallel: int, pipeline_parallel: int, tied: bool, expert_parallel: int = 1
) -> int:
    """Weights of a rank, without biases and query and key norms (less than a thousandth).

    ``L / P * ((2 A + 2 G) H + 3 F H) / T + 2 L H / P``, plus V H / T for the embedding on the first stage and for the
    head on the last; counted once if they are tied on a single stage. A mixture of E experts has 3 F H E / EP instead
    of 3 F H, EP = expert-parallel size.
    """
    hidden = size.hidden_size
    vocabulary = -(-size.vocab_size // tensor_parallel) * hidden
    elsewhere = (size.num_experts - size.num_experts // expert_parallel) * size.expert_weights
    total = size.num_layers // pipeline_parallel * ((size.weights_of_layer - elsewhere) // tensor_parallel + 2 * hidden)
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
        expert_parallel=layout.expert_parallel,
    )  # fmt: skip
    is_last = stage == layout.pipeline_parallel - 1
    vocabulary = -(-size.vocab_size // layout.tensor_parallel) * size.hidden_size
    # 1F1B schedule: a stage has one row in flight for itself and one for each later stage
    in_flight = min(layout.pipeline_parallel - stage, layout.num_rows)
    if layout.interleaved > 1:
        # of the first stage, and at most of the others: 1 + (P - 1) / (P V) times as much
        in_flight *= 1 + (layout.pipeline_parallel - 1) / (layout.pipeline_parallel * layout.interleaved)
    layers = size.num_layers // layout.pipeline_parallel
    layer = _layer_numbers(size, layout)
    boundary = layout.row_length * size.hidden_size / (layout.tensor_parallel if layout.sequence_parallel else 1)
    saved = in_flight * layers * boundary + layer if layout.recompute else in_flight * layers * layer
    if not cuda and layout.num_rows > in_flight:
        # most of the heap is never returned to the system (host/heap.py), and the next row fits few of the freed blocks
        saved *= 2
    return RankMemory(
        parameters=parameters,
        weights=parameters * numerics.weight,
        gradients=parameters * numerics.gradient,
        optimizer=parameters * numerics.optimizer,
        activations=saved * numerics.activation,
        vocabulary=vocabulary * numerics.new_gradient if stage == 0 or is_last else 0.0,
        head=_head_bytes(size, layout, cuda=cuda) if is_last else 0.0,
        overhead=_OVERHEAD_CUDA if cuda else _OVERHEAD_CPU,
    )


def _layer_numbers(size: ModelSize, layout: Layout) -> float:
    """Numbers that a layer saves per row for the backward pass.

    Per place: inputs of norms and linear layers 4 H; queries, keys and values A + 2 G; rotated A + G; attended A; input
    of the MLP's activation (2 F if gated, else F) and its output F, for each of a token's experts.
    """
    attended, grouped = size.num_heads * size.head_size, size.num_query_groups * size.head_size
    split = 3 * attended + 3 * grouped + size.experts_per_token * (3 if size.gated else 2) * size.ffn_hidden_size
    whole = 4 * size.hidden_size / (layout.tensor_parallel if layout.sequence_parallel else 1)
    return layout.row_length * (split / layout.tensor_parallel + whole)


def _head_bytes(size: ModelSize, layout: Layout, *, cuda: bool) -> float:
    """Three float32 copies of the hidden states at response places, and two blocks of logits (core/logprobs.py)."""
    block = LOGITS_BYTES_CUDA if cuda else LOGITS_BYTES_CPU
    return 3 * 4 * layout.num_targets * size.hidden_size + 2 * block
