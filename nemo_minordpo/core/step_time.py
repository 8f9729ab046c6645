"""Where the time of a packed training step goes: an estimate from sizes, counts and published kernel speeds alone.

Seconds of one rank, the last pipeline stage, which has the head. Symbols: L = layers, H = hidden size, F = MLP's,
A = heads x head size, G = query groups x head size, V = vocabulary, W = weights of a layer's linear layers, T, P, D =
tensor-, pipeline- and data-parallel size, S = places of a row, R = rows of a rank and step, t = S / T under sequence
parallelism, else S (`Run.split_places`).

Bytes are counts of reads and writes in the layers of Megatron-Core 0.10, of bfloat16 numbers; speeds and their sources
are in docs/step-time.md.
"""

from dataclasses import astuple, dataclass

from nemo_minordpo.core.flops import ModelSize, StepWork
from nemo_minordpo.core.memory import Layout, num_parameters

_LINEAR_LAYERS = 4  # of a layer: queries, keys and values; projection; MLP's first; MLP's second
_GPUS_OF_A_NODE = 8
_ATTENTION_BACKWARD = 2.5  # five products for the forward pass's two (Dao 2023, arXiv 2307.08691)
_FORWARD_SHARE = 0.4  # of element-wise bytes: 0.35 to 0.45 by the counts of `elementwise`


@dataclass(frozen=True, kw_only=True)
class Device:
    """What a GPU does at best, and the share that kernels reach: FLOP/s of dense products, bytes/s, links one way.

    latency: seconds of a collective of a few bytes.
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
        """Of a group that spans so many neighbouring ranks: NVLink within a node, the network beyond."""
        beyond = ranks > _GPUS_OF_A_NODE
        return self.network * self.network_efficiency if beyond else self.nvlink * self.nvlink_efficiency


@dataclass(frozen=True, kw_only=True)
class HeadKernels:
    """How the head is computed, forward and backward.

    products: in products of [targets, H] x [H, V]. efficiency: of these; None = the device's in bfloat16.
    bytes_of_logit: passes over the logits beyond the products' own. bytes_of_weight: to add a row's weight gradient.
    """

    products: float
    efficiency: float | None
    bytes_of_logit: float
    bytes_of_weight: float


@dataclass(frozen=True, kw_only=True)
class Software:
    """Which kernels there are, and what starts them.

    fp8: of linear layers. fused_accumulation: the product adds a weight's gradient to the float32 one. attention_*:
    FLOP/s over the blocks that are visited. exposed_*: share of the communication that nothing hides. virtual_stages:
    of a rank in the pipeline. linear_launch: seconds of the CPU for a linear layer and pass; other_launches: other
    operations of a layer and pass; launch: seconds of one; row_launch: of a row (its mask, transfer, schedule).
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
    """What is trained, and how it is split; visited: (query, key) places that attention's kernel computes."""

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
        """A count over all ranks and rows."""
        return count / (self.data_parallel * self.layout.num_rows)


@dataclass(frozen=True)
class StepSeconds:
    """Seconds of a step by part; what one part hides is in no other."""

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
    """Row after row, then what comes once a step; a pipeline idles for one row of each other stage."""
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
    """Of a row, forward and backward: ``L / P * 6 W S / T / rate``."""
    flops = 6 * run.stage_layers * run.size.weights_of_layer * run.layout.row_length / run.layout.tensor_parallel
    return flops / device.product_rate(fp8=software.fp8)


def attention(run: Run, software: Software) -> float:
    """Of a row: ``L / P * 4 A visited / T * (1 / forward + 2.5 / backward)``; kernels visit whole blocks."""
    return _attention_flops(run) * (1 / software.attention_forward + _ATTENTION_BACKWARD / software.attention_backward)


def head(run: Run, device: Device, kernels: HeadKernels) -> float:
    """Of a row with N targets, in bfloat16 always, and its weight's gradient into the float32 one.

    ``V / T * (products * 2 N H / rate + (bytes_of_logit * N + bytes_of_weight * H) / memory)``
    """
    targets, hidden = run.of_a_row(run.work.targets), run.size.hidden_size
    rate = device.bf16_peak * (kernels.efficiency or device.bf16_efficiency)
    of_memory = kernels.bytes_of_logit * targets + kernels.bytes_of_weight * hidden
    seconds = kernels.products * 2 * targets * hidden / rate + of_memory / device.memory_rate
    return run.size.vocab_size / run.layout.tensor_parallel * seconds


def elementwise(run: Run, device: Device, software: Software) -> float:
    """Of a row, forward and backward: ``L / P * bytes / memory``.

    Bytes a place: two norms, each H in and out, backward two in and one out, 20 H; two residual sums, and backward,
    24 H; queries, keys and values split, attention's output laid out, 16 A + 8 G; rotary embedding 58 (A + G) in single
    kernels and 88 a number of a head for the angles, 8 (A + G) fused; SwiGLU 36 F in single kernels, 16 F fused, an
    activation without a gate 10 F. FP8 writes inputs and gradients of linear layers once more, and transposed:
    8 A + 8 G + 12 F + 10 H.
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
    """Weight gradients of a row into float32 ones: bytes / memory.

    12 bytes a weight: written and read in bfloat16, added to float32; none of linear layers where their product adds.
    The embedding's gradient is as large as itself; it is here on a single stage.
    """
    weights = 0.0 if software.fused_accumulation else run.stage_layers * run.size.weights_of_layer
    if run.layout.pipeline_parallel == 1:
        weights += run.size.vocab_size * run.size.hidden_size
    return 12 * weights / run.layout.tensor_parallel / device.memory_rate


def recomputation(run: Run, device: Device, software: Software) -> float:
    """Of a row: the layers' forward pass once more, where activations are recomputed."""
    if not run.layout.recompute:
        return 0.0
    of_attention = _attention_flops(run) / software.attention_forward
    return products(run, device, software) / 3 + of_attention + _FORWARD_SHARE * elementwise(run, device, software)


def tensor_parallel(run: Run, device: Device, software: Software) -> float:
    """Of a row: ``exposed * n * (latency + (T - 1) / T * 2 S H / nvlink)`` with n collectives.

    Under sequence parallelism 10 gathers and scatters a layer (4 forward, 4 backward, 2 of inputs once more for weight
    gradients) and 2 around the head; else 4 all-reduces a layer and one at the head, which move twice as much. Source:
    Korthikanti et al. 2022 (arXiv 2205.05198).
    """
    ranks = run.layout.tensor_parallel
    if ranks == 1:
        return 0.0
    number, volume = (10 * run.stage_layers + 2, 1) if run.layout.sequence_parallel else (4 * run.stage_layers + 1, 2)
    size = volume * (ranks - 1) / ranks * 2 * run.layout.row_length * run.size.hidden_size
    return software.exposed_tensor * number * (device.latency + size / device.link_rate(ranks=ranks))


def point_to_point(run: Run, device: Device) -> float:
    """Of a row: activations from the stage before and their gradients back, ``2 * (latency + 2 t H / link)``."""
    if run.layout.pipeline_parallel == 1:
        return 0.0
    ranks = run.layout.pipeline_parallel * run.layout.tensor_parallel
    return 2 * (device.latency + 2 * run.split_places * run.size.hidden_size / device.link_rate(ranks=ranks))


def data_parallel(run: Run, device: Device, software: Software) -> float:
    """Of a step: float32 gradients scattered, bfloat16 weights gathered, ``exposed * (D - 1) / D * 6 n / link``."""
    ranks = run.data_parallel
    if ranks == 1:
        return 0.0
    return software.exposed_data * (ranks - 1) / ranks * 6 * _parameters(run) / device.link_rate(ranks=run.ranks)


def optimizer(run: Run, device: Device, software: Software) -> float:
    """Of a step: bytes / memory, with n weights on this rank, of which it steps n / D (distributed Adam).

    A stepped weight: its gradient's norm 4, clipping 8, Adam 28 (gradient in; moments and float32 weight in and out),
    the bfloat16 weight 6. Every one: its gradient set to zero 4 and, where D > 1, scaled 8. In FP8 each weight of a
    linear layer is cast once a step, and transposed: 4.
    """
    every = 12 if run.data_parallel > 1 else 4
    size = _parameters(run) * (46 / run.data_parallel + every)
    if software.fp8:
        size += 4 * run.stage_layers * run.size.weights_of_layer / run.layout.tensor_parallel
    return size / device.memory_rate


def launches(run: Run, software: Software) -> float:
    """What the CPU takes to start a row's kernels, forward and backward; it may be ahead of the GPU by a row."""
    passes = 3 if run.layout.recompute else 2
    layer = _LINEAR_LAYERS * software.linear_launch + software.other_launches * software.launch
    return passes * run.stage_layers * layer + software.row_launch


def utilisation(run: Run, step: StepSeconds, *, peak: float) -> float:
    """Model FLOPs of the step (core/flops.py) over what all ranks could do at ``peak`` FLOP/s."""
    return run.size.training_flops(run.work) / (run.ranks * peak * step.total)


def _attention_flops(run: Run) -> float:
    heads = run.size.num_heads * run.size.head_size / run.layout.tensor_parallel
    return run.stage_layers * 4 * heads * run.of_a_row(run.visited)


def _parameters(run: Run) -> int:
    layout = run.layout
    return num_parameters(
        run.size, stage=layout.pipeline_parallel - 1, tied=run.tied,
        tensor_parallel=layout.tensor_parallel, pipeline_parallel=layout.pipeline_parallel,
    )  # fmt: skip
