"""Estimate where the time of a packed training step goes, from sizes, counts and published kernel speeds alone.

Times are seconds on one rank of the last pipeline stage, which has the head. L = layers, H = hidden size, F = MLP size,
A = heads x head size, G = query groups x head size, V = vocabulary, W = weights of a layer's linear layers, T, P, D =
tensor-, pipeline- and data-parallel size, S = places per row, R = rows per rank and step, t = S / T under sequence
parallelism, else S (`Run.split_places`).

Bytes count reads and writes of bfloat16 numbers in the layers of Megatron-Core 0.10. docs/step-time.md has the speeds
and their sources.
"""

from dataclasses import astuple, dataclass

from nemo_minordpo.core.flops import ModelSize, StepWork
from nemo_minordpo.core.memory import Layout, num_parameters

_LINEAR_LAYERS = 4  # per layer: queries, keys and values; projection; the MLP's two
_GPUS_OF_A_NODE = 8
_ATTENTION_BACKWARD = 2.5  # five products, against two in the forward pass (Dao 2023, arXiv 2307.08691)
_FORWARD_SHARE = 0.4  # share of element-wise bytes; `elementwise` counts 0.35 to 0.45


@dataclass(frozen=True, kw_only=True)
class Device:
    """A GPU's peak rates and the share that kernels reach: dense FLOP/s, bytes/s, links in one direction.

    latency: seconds for a collective of a few bytes.
    """

    bf16_peak: float
    fp8_peak: float
    memory: float
    nvlink: float
    network: float
    bf16_efficiency: float
    fp8_efficiency: float
    memory_efficiency: float
    nvlink_efficiency: float
    network_efficiency: float
    latency: float

    def product_rate(self, *, fp8: bool) -> float:
        return self.fp8_peak * self.fp8_efficiency if fp8 else self.bf16_peak * self.bf16_efficiency

    @property
    def memory_rate(self) -> float:
        return self.memory * self.memory_efficiency

    def link_rate(self, *, ranks: int) -> float:
        """Bytes/s for a group that spans this many neighbouring ranks: NVLink within a node, the network beyond."""
        beyond = ranks > _GPUS_OF_A_NODE
        return self.network * self.network_efficiency if beyond else self.nvlink * self.nvlink_efficiency


@dataclass(frozen=True, kw_only=True)
class HeadKernels:
    """How the head is computed, forward and backward.

    products: number of [targets, H] x [H, V] products. efficiency: theirs; None = the device's in bfloat16.
    bytes_of_logit: bytes per logit beyond the products' own. bytes_of_weight: bytes to add a row's weight gradient.
    """

    products: float
    efficiency: float | None
    bytes_of_logit: float
    bytes_of_weight: float


@dataclass(frozen=True, kw_only=True)
class Software:
    """The kernels in use and the cost of launching them.

    fp8: linear layers in FP8. fused_accumulation: the product adds the weight gradient to the float32 one.
    attention_*: FLOP/s over visited blocks. exposed_*: share of communication not hidden behind computation.
    virtual_stages: pipeline stages per rank. linear_launch: CPU seconds per linear layer and pass. other_launches:
    other operations per layer and pass. launch: CPU seconds for one of them. row_launch: CPU seconds per row (mask,
    transfer, schedule).
    """

    fp8: bool
    fused_accumulation: bool
    fused_rope: bool
    fused_swiglu: bool
    attention_forward: float
    attention_backward: float
    head: HeadKernels
    exposed_tensor: float
    exposed_data: float
    virtual_stages: int
    linear_launch: float
    other_launches: int
    launch: float
    row_launch: float


@dataclass(frozen=True, kw_only=True)
class Run:
    """The model, its work and its layout; visited: (query, key) pairs that the attention kernel computes."""

    size: ModelSize
    layout: Layout
    work: StepWork
    visited: int
    data_parallel: int
    tied: bool

    @property
    def ranks(self) -> int:
        return self.data_parallel * self.layout.tensor_parallel * self.layout.pipeline_parallel

    @property
    def stage_layers(self) -> float:
        return self.size.num_layers / self.layout.pipeline_parallel

    @property
    def split_places(self) -> float:
        return self.layout.row_length / (self.layout.tensor_parallel if self.layout.sequence_parallel else 1)

    def of_a_row(self, count: int) -> float:
        """The share of one row in a count over all ranks and rows."""
        return count / (self.data_parallel * self.layout.num_rows)


@dataclass(frozen=True)
class StepSeconds:
    """Seconds per step by part; time hidden behind another part is not counted."""

    products: float
    attention: float
    head: float
    elementwise: float
    accumulation: float
    recomputation: float
    tensor_parallel: float
    launch: float
    pipeline: float
    data_parallel: float
    optimizer: float

    @property
    def total(self) -> float:
        return sum(astuple(self))


def step_seconds(run: Run, device: Device, software: Software) -> StepSeconds:
    """Rows one after another, then the work done once per step; a pipeline idles for one row per other stage."""
    rows = run.layout.num_rows
    on_device = (products, elementwise, recomputation, tensor_parallel, accumulation)
    layers = {part.__name__: part(run, device, software) for part in on_device}
    layers["attention"] = attention(run, software)
    of_layers, of_head = sum(layers.values()), head(run, device, software.head)
    bubble = (run.layout.pipeline_parallel - 1) * of_layers / software.virtual_stages
    return StepSeconds(
        **{name: rows * seconds for name, seconds in layers.items()},
        head=rows * of_head,
        launch=rows * max(launches(run, software) - of_layers - of_head, 0.0),
        pipeline=bubble + rows * point_to_point(run, device),
        data_parallel=data_parallel(run, device, software),
        optimizer=optimizer(run, device, software),
    )


def products(run: Run, device: Device, software: Software) -> float:
    """Per row, forward and backward: ``L / P * 6 W S / T / rate``."""
    weights = run.stage_layers * run.size.active_weights_of_layer / run.layout.tensor_parallel
    flops = 6 * weights * run.layout.row_length
    return flops / device.product_rate(fp8=software.fp8)


def attention(run: Run, software: Software) -> float:
    """Per row: ``L / P * 4 A visited / T * (1 / forward + 2.5 / backward)``; kernels visit whole blocks."""
    return _attention_flops(run) * (1 / software.attention_forward + _ATTENTION_BACKWARD / software.attention_backward)


def head(run: Run, device: Device, kernels: HeadKernels) -> float:
    """Per row with N targets, always in bfloat16, including the weight gradient added to the float32 one.

    ``V / T * (products * 2 N H / rate + (bytes_of_logit * N + bytes_of_weight * H) / memory)``
    """
    targets, hidden = run.of_a_row(run.work.targets), run.size.hidden_size
    rate = device.bf16_peak * (kernels.efficiency or device.bf16_efficiency)
    of_memory = kernels.bytes_of_logit * targets + kernels.bytes_of_weight * hidden
    seconds = kernels.products * 2 * targets * hidden / rate + of_memory / device.memory_rate
    return run.size.vocab_size / run.layout.tensor_parallel * seconds


def elementwise(run: Run, device: Device, software: Software) -> float:
    """Per row, forward and backward: ``L / P * bytes / memory``.

    Bytes per place:
    - Two norms, each H in and out, backward two in and one out: 20 H. Two residual sums and their backward: 24 H.
    - Splitting queries, keys and values and laying out the attention output: 16 A + 8 G.
    - Rotary embedding: 8 (A + G) fused; else 58 (A + G), and 88 per number of a head for the angles.
    - SwiGLU: 16 F fused, else 36 F. An activation without a gate: 10 F.
    - FP8 writes inputs and gradients of linear layers again, also transposed: 8 A + 8 G + 12 F + 10 H.
    """
    size = run.size
    hidden, ffn = size.hidden_size, size.ffn_hidden_size
    heads, groups = size.num_heads * size.head_size, size.num_query_groups * size.head_size
    rotary, angles = (8, 0) if software.fused_rope else (58, 88 * size.head_size)
    activation = (16 if software.fused_swiglu else 36) if size.gated else 10
    split = 16 * heads + 8 * groups + rotary * (heads + groups) + activation * ffn
    whole = 44 * hidden
    if software.fp8:
        split += 8 * heads + 8 * groups + 12 * ffn
        whole += 10 * hidden
    number = (split / run.layout.tensor_parallel + angles) * run.layout.row_length + whole * run.split_places
    return run.stage_layers * number / device.memory_rate


def accumulation(run: Run, device: Device, software: Software) -> float:
    """Per row, adding weight gradients to the float32 ones: bytes / memory.

    12 bytes per weight: written and read in bfloat16, added in float32; none for linear layers with fused accumulation.
    The embedding's gradient is as large as the embedding; it counts only with a single pipeline stage.
    """
    weights = 0.0 if software.fused_accumulation else run.stage_layers * run.size.weights_of_layer
    if run.layout.pipeline_parallel == 1:
        weights += run.size.vocab_size * run.size.hidden_size
    return 12 * weights / run.layout.tensor_parallel / device.memory_rate


def recomputation(run: Run, device: Device, software: Software) -> float:
    """Per row: the layers' forward pass again, if activations are recomputed."""
    if not run.layout.recompute:
        return 0.0
    of_attention = _attention_flops(run) / software.attention_forward
    return products(run, device, software) / 3 + of_attention + _FORWARD_SHARE * elementwise(run, device, software)


def tensor_parallel(run: Run, device: Device, software: Software) -> float:
    """Per row: ``exposed * n * (latency + (T - 1) / T * 2 S H / nvlink)`` with n collectives.

    With sequence parallelism: 10 gathers and scatters per layer (4 forward, 4 backward, 2 that gather inputs again for
    weight gradients) and 2 around the head. Otherwise: 4 all-reduces per layer and one at the head, each moving twice
    as much. Source: Korthikanti et al. 2022 (arXiv 2205.05198).
    """
    ranks = run.layout.tensor_parallel
    if ranks == 1:
        return 0.0
    number, volume = (10 * run.stage_layers + 2, 1) if run.layout.sequence_parallel else (4 * run.stage_layers + 1, 2)
    size = volume * (ranks - 1) / ranks * 2 * run.layout.row_length * run.size.hidden_size
    return software.exposed_tensor * number * (device.latency + size / device.link_rate(ranks=ranks))


def point_to_point(run: Run, device: Device) -> float:
    """Per row: activations from the previous stage and their gradients back, ``2 * (latency + 2 t H / link)``."""
    if run.layout.pipeline_parallel == 1:
        return 0.0
    ranks = run.layout.pipeline_parallel * run.layout.tensor_parallel
    return 2 * (device.latency + 2 * run.split_places * run.size.hidden_size / device.link_rate(ranks=ranks))


def data_parallel(run: Run, device: Device, software: Software) -> float:
    """Per step: scatter float32 gradients, gather bfloat16 weights, ``exposed * (D - 1) / D * 6 n / link``."""
    ranks = run.data_parallel
    if ranks == 1:
        return 0.0
    return software.exposed_data * (ranks - 1) / ranks * 6 * _parameters(run) / device.link_rate(ranks=run.ranks)


def optimizer(run: Run, device: Device, software: Software) -> float:
    """Per step: bytes / memory. Of n weights on this rank, it updates n / D (distributed Adam).

    Per updated weight: gradient norm 4, clipping 8, Adam 28 (gradient in; moments and float32 weight in and out), the
    bfloat16 weight 6. Per weight: zeroing its gradient 4 and, if D > 1, scaling it 8. FP8 casts and transposes each
    weight of a linear layer once per step: 4.
    """
    every = 12 if run.data_parallel > 1 else 4
    size = _parameters(run) * (46 / run.data_parallel + every)
    if software.fp8:
        size += 4 * run.stage_layers * run.size.weights_of_layer / run.layout.tensor_parallel
    return size / device.memory_rate


def launches(run: Run, software: Software) -> float:
    """CPU time to launch a row's kernels, forward and backward; the CPU may run one row ahead of the GPU."""
    passes = 3 if run.layout.recompute else 2
    layer = _LINEAR_LAYERS * software.linear_launch + software.other_launches * software.launch
    return passes * run.stage_layers * layer + software.row_launch


def utilisation(run: Run, step: StepSeconds, *, peak: float) -> float:
    """Model FLOPs utilisation: the step's FLOPs (core/flops.py) over those of all ranks at ``peak`` FLOP/s."""
    return run.size.training_flops(run.work) / (run.ranks * peak * step.total)


def _attention_flops(run: Run) -> float:
    heads = run.size.num_heads * run.size.head_size / run.layout.tensor_parallel
    return run.stage_layers * 4 * heads * run.of_a_row(run.visited)


def _parameters(run: Run) -> int:
    layout = run.layout
    return num_parameters(
        run.size, stage=layout.pipeline_parallel - 1, tied=run.tied,
        tensor_parallel=layout.tensor_parallel, pipeline_parallel=layout.pipeline_parallel,
        expert_parallel=layout.expert_parallel,
    )  # fmt: skip
