"""Where the time of a step should go on H100 and H200, on paper: core/step_time.py with published kernel speeds.

python -m tests.benchmarks.step_time     # writes docs/results/step-time.json, fills docs/step-time.md; no GPU

Sources of all speeds are in docs/step-time.md.
"""

import argparse
import json
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from statistics import fmean

import numpy as np
import yaml

from nemo_minordpo.config import CONF
from nemo_minordpo.core.flops import ModelSize, StepWork
from nemo_minordpo.core.memory import GIB, Layout, Numerics, fullest_rank
from nemo_minordpo.core.pair_packing import row_multiple
from nemo_minordpo.core.step_time import (
    Device,
    HeadKernels,
    Run,
    Software,
    StepSeconds,
    head,
    launches,
    step_seconds,
    utilisation,
)
from nemo_minordpo.train.data.dataset import PairBatches
from nemo_minordpo.train.data.tokens import TokenArrays
from tests.benchmarks.tables import fill_pages

PEAK = 989.4e12  # of both GPUs in bfloat16: what model FLOP utilisation is measured against
_SUSTAINED = 0.8  # of the best shape's speed: chosen to agree with PUBLISHED
H100 = Device(
    bf16_peak=PEAK, fp8_peak=2 * PEAK, memory=3.35e12, nvlink=450e9, network=50e9,
    bf16_efficiency=_SUSTAINED * 0.803, fp8_efficiency=_SUSTAINED * 0.709, memory_efficiency=0.92,
    nvlink_efficiency=0.81, network_efficiency=0.9, latency=20e-6,
)  # fmt: skip
H200 = replace(H100, memory=4.8e12, fp8_efficiency=_SUSTAINED * 0.734)
DEVICES = {"H100": H100, "H200": H200}

# Passes over float32 logits: 7 forward and 7.5 backward, as it was; one each, as it is (core/logits.py); none, but
# slower products and fewer of them.
HEADS = {
    "single operations": HeadKernels(products=4, efficiency=None, bytes_of_logit=58, bytes_of_weight=16),
    "one pass per block": HeadKernels(products=4, efficiency=None, bytes_of_logit=10, bytes_of_weight=16),
    "cut cross-entropy": HeadKernels(products=1 + 95 / 43, efficiency=0.55, bytes_of_logit=0, bytes_of_weight=16),
    "cut cross-entropy, unfiltered": HeadKernels(
        products=1 + 324 / 42, efficiency=0.55, bytes_of_logit=0, bytes_of_weight=16
    ),
}
SINGLE = Software(
    fp8=False, fused_accumulation=False, fused_rope=False, fused_swiglu=False, attention_forward=300e12,
    attention_backward=220e12, head=HEADS["one pass per block"], exposed_tensor=1.0, exposed_data=1.0,
    virtual_stages=1, linear_launch=60e-6, other_launches=56, launch=6e-6, row_launch=5e-3,
)  # fmt: skip
# What fusions=te turns on, one after another
FUSIONS = {
    "SwiGLU fused (`bias_activation_fusion`)": {"fused_swiglu": True, "other_launches": 50},
    "rotary embedding fused (`apply_rope_fusion`)": {"fused_rope": True, "other_launches": 36},
    "gradients added by the products (`gradient_accumulation_fusion`)": {
        "fused_accumulation": True, "other_launches": 30,
    },
}  # fmt: skip
FUSED = replace(SINGLE, **{key: value for change in FUSIONS.values() for key, value in change.items()})


def in_fp8(software: Software) -> Software:
    return replace(software, fp8=True, linear_launch=125e-6)


@dataclass(frozen=True)
class Model:
    """A model, its layout, and pairs: draws of prompt, shared response and each tail, lowest and highest tokens."""

    size: ModelSize
    tied: bool
    tensor_parallel: int
    pipeline_parallel: int
    data_parallel: int
    row_capacity: int
    batch: int
    lengths: tuple[tuple[int, int], tuple[int, int], tuple[int, int]]


def _size(layers: int, hidden: int, ffn: int, heads: int, groups: int, vocab: int) -> ModelSize:
    return ModelSize(
        num_layers=layers, hidden_size=hidden, ffn_hidden_size=ffn, num_heads=heads, num_query_groups=groups,
        head_size=128, vocab_size=vocab, gated=True,
    )  # fmt: skip


QWEN_1_5B = _size(28, 1536, 8960, 12, 2, 151936)
LLAMA_8B, LLAMA_70B = _size(32, 4096, 14336, 32, 8, 128256), _size(80, 8192, 28672, 64, 8, 128256)
_SPEED_CHECK = ((60, 140), (25, 125), (25, 125))  # 100 tokens; responses of 150 that share half
_METAMATH = ((80, 240), (10, 110), (40, 140))  # 400 places a pair, 60 % of them targets


def _shipped(name: str, ranks: int, size: ModelSize) -> Model:
    """As conf/model has it."""
    section = yaml.safe_load((CONF / "model" / f"{name}.yaml").read_text())["model"]
    tensor, pipeline = section["tensor_model_parallel_size"], section.get("pipeline_model_parallel_size", 1)
    data = ranks // (tensor * pipeline)
    return Model(size, False, tensor, pipeline, data, section["data"]["packed_sequence_size"], 128, _METAMATH)


MODELS = {
    "Qwen2.5-1.5B, one GPU": Model(QWEN_1_5B, True, 1, 1, 1, 8192, 64, _SPEED_CHECK),
    "Llama-3.1-8B, 8 GPUs": _shipped("llama-3.1-8b", 8, LLAMA_8B),
    "Llama-3.1-70B, 64 GPUs": _shipped("llama-3.1-70b", 64, LLAMA_70B),
}
_STEPS = 4


def pairs(model: Model, count: int) -> TokenArrays:
    """Random tokens; the two tails of a pair differ in their first one."""
    draw = np.random.default_rng(0)
    prompt, shared, *tails = (draw.integers(low, high + 1, count) for low, high in (*model.lengths, model.lengths[2]))
    lengths = np.stack([prompt + shared + tail for tail in tails], axis=1).reshape(-1)
    return TokenArrays(
        tokens=draw.integers(0, 1000, lengths.sum()).astype(np.int32), starts=np.cumsum([0, *lengths]),
        prompt_lengths=prompt.astype(np.int32), shared_lengths=(prompt + shared).astype(np.int32),
        reward_margins=np.zeros(count, np.float32),
    )  # fmt: skip


@cache
def packed(model: Model, *, fp8: bool, block: int = 128) -> Run:
    """A typical step, by the packer: means over steps, of all ranks."""
    arrays = pairs(model, _STEPS * model.batch)
    sequence_parallel = model.tensor_parallel > 1
    steps = [
        [
            PairBatches(
                arrays, global_batch_size=model.batch, row_capacity=model.row_capacity, data_parallel_rank=rank,
                row_multiple=row_multiple(
                    tensor_parallel=model.tensor_parallel, sequence_parallel=sequence_parallel, fp8=fp8
                ),
                data_parallel_size=model.data_parallel, pad_id=0,
            ).training_step(step, seed=0)
            for rank in range(model.data_parallel)
        ]
        for step in range(_STEPS)
    ]  # fmt: skip
    ranks = [rank for step in steps for rank in step]
    work = {name: round(fmean(vars(step[0].work)[name] for step in steps)) for name in StepWork.__dataclass_fields__}
    places = [
        visited_places(part.row.segments.numpy(), rank.row_length, block)
        for rank in ranks
        for part in rank.micro_batches
    ]
    layout = Layout(
        tensor_parallel=model.tensor_parallel, pipeline_parallel=model.pipeline_parallel,
        sequence_parallel=sequence_parallel, recompute=False,
        row_length=round(fmean(rank.row_length for rank in ranks)),
        num_rows=round(fmean(len(rank.micro_batches) for rank in ranks)),
        num_targets=max(len(part.row.targets) for rank in ranks for part in rank.micro_batches),
    )  # fmt: skip
    return Run(
        size=model.size, layout=layout, work=StepWork(**work), visited=round(sum(places) / _STEPS),
        data_parallel=model.data_parallel, tied=model.tied,
    )  # fmt: skip


def visited_places(segments: np.ndarray, length: int, block: int) -> int:
    """(query, key) places in the blocks of a row's mask that are not empty: what FlexAttention computes.

    Args:
        segments: [m, 4], start, branch, chosen_end, end of each pair (core/pair_packing.py); padding is one more.
    """
    pair, part = np.full(length, -1), np.zeros(length, dtype=np.int8)
    for number, (start, branch, chosen_end, end) in enumerate(segments):
        pair[start:end], part[branch:chosen_end], part[chosen_end:end] = number, 1, 2
    place, count = np.arange(length), 0
    starts = place[::block]
    for first in starts:
        query = place[first : first + block, None]
        sees = (query >= place) & (pair[query] == pair) & ((part[query] != 2) | (part != 1))
        count += int(np.logical_or.reduceat(sees.any(axis=0), starts).sum())
    return count * block**2


def memory_gib(run: Run) -> float:
    """Of the fullest rank, by core/memory.py; FP8 copies of weights are not in it."""
    numerics = Numerics(weight=2, gradient=4, optimizer=12 / run.data_parallel, activation=2)
    return fullest_rank(run.size, run.layout, numerics, tied=run.tied, cuda=True).total / GIB


def pairs_per_second(run: Run, step: StepSeconds) -> float:
    """Of a GPU."""
    return run.work.pairs / step.total / run.ranks


@dataclass(frozen=True)
class Published:
    """A step of pre-training that was measured: sequences of `length` tokens, of which `split` GPUs share each."""

    name: str
    size: ModelSize
    layout: tuple[int, int, int]  # tensor-, pipeline-, data-parallel, without what shares a sequence
    sequences: int
    length: int
    split: int
    virtual_stages: int
    fp8: bool
    seconds: float

    def run(self) -> Run:
        tensor, pipeline, data = self.layout
        attended, tokens = self.sequences * self.length * (self.length + 1) // 2, self.sequences * self.length
        work = StepWork(
            pairs=0, unique_tokens=tokens, equivalent_tokens=tokens, attended=attended, targets=tokens, places=tokens
        )
        layout = Layout(
            tensor_parallel=tensor, pipeline_parallel=pipeline, sequence_parallel=tensor > 1, recompute=False,
            row_length=self.length // self.split, num_rows=self.sequences // data, num_targets=0,
        )  # fmt: skip
        return Run(
            size=self.size, layout=layout, work=work, visited=attended, data_parallel=data * self.split, tied=False
        )

    def software(self) -> Software:
        """With cuDNN's attention, whole logits in bfloat16, everything fused, communication hidden but for a part."""
        software = replace(
            FUSED, attention_forward=550e12, attention_backward=450e12, exposed_tensor=0.3, exposed_data=0.1,
            head=HeadKernels(products=3, efficiency=None, bytes_of_logit=50, bytes_of_weight=0),
            virtual_stages=self.virtual_stages,
        )  # fmt: skip
        return in_fp8(software) if self.fp8 else software

    def comparison(self) -> dict[str, float]:
        run = self.run()
        step = step_seconds(run, H100, self.software())
        return {
            "seconds": self.seconds, "expected": step.total, "ratio": step.total / self.seconds,
            "utilisation": utilisation(run, step, peak=PEAK),
        }  # fmt: skip


def _gpt(
    name: str, layers: int, hidden: int, heads: int, layout: tuple[int, int, int], batch: int, tflops: float
) -> Published:
    """Of Megatron-LM, from TFLOP/s a GPU by its count, which has attention without causality."""
    size = replace(_size(layers, hidden, 4 * hidden, heads, heads, 131072), head_size=hidden // heads, gated=False)
    flops = 72 * batch * 4096 * layers * hidden**2 * (1 + 4096 / (6 * hidden) + 131072 / (12 * layers * hidden))
    seconds = flops / (layout[0] * layout[1] * layout[2]) / (tflops * 1e12)
    return Published(name, size, layout, batch, 4096, 1, 1, False, seconds)


PUBLISHED = (
    Published("Llama 3.1 8B, bf16, 8 GPUs [1]", LLAMA_8B, (1, 1, 4), 128, 8192, 2, 1, False, 12.27),
    Published("Llama 3.1 8B, FP8, 8 GPUs [1]", LLAMA_8B, (1, 1, 4), 128, 8192, 2, 1, True, 9.33),
    Published("Llama 3.1 70B, bf16, 64 GPUs [1]", LLAMA_70B, (4, 4, 2), 128, 8192, 2, 5, False, 14.66),
    Published("Llama 3.1 70B, FP8, 64 GPUs [2]", LLAMA_70B, (4, 4, 2), 128, 8192, 2, 5, True, 10.46),
    _gpt("GPT 1.7B, bf16, 48 GPUs [3]", 24, 2048, 16, (1, 1, 48), 192, 408.8),
    _gpt("GPT 7.1B, bf16, 96 GPUs [3]", 30, 4096, 32, (2, 1, 48), 192, 465.9),
    _gpt("GPT 70B, bf16, 768 GPUs [3]", 84, 8192, 64, (8, 2, 48), 384, 419.7),
)


_CAPACITIES = (1024, 2048, 3072, 4096, 8192, 16384, 24576)


def found(model: Model, device: str, *, fp8: bool, software: Software = SINGLE, block: int = 128) -> dict[str, float]:
    """Milliseconds of the parts, their sum, and what is made of it."""
    run = packed(model, fp8=fp8, block=block)
    software = in_fp8(software) if fp8 else software
    step = step_seconds(run, DEVICES[device], software)
    return {
        **{part: 1e3 * seconds for part, seconds in asdict(step).items()},
        "total": 1e3 * step.total,
        "cpu": 1e3 * run.layout.num_rows * launches(run, software),
        "rows": run.layout.num_rows,
        "row_length": run.layout.row_length,
        "utilisation": utilisation(run, step, peak=PEAK),
        "pairs_per_second": pairs_per_second(run, step),
        "memory_gib": memory_gib(run),
        "visited_over_attended": run.visited / run.work.attended,
    }


def results() -> dict:
    """All that the tables of docs/step-time.md hold."""
    one_gpu = MODELS["Qwen2.5-1.5B, one GPU"]
    return {
        "layouts": {name: _layout(model) for name, model in MODELS.items()},
        "steps": {
            name: {
                state: {
                    _column(device, fp8): found(model, device, fp8=fp8, software=software)
                    for device in DEVICES
                    for fp8 in (False, True)
                }
                for state, software in (("single", SINGLE), ("fused", FUSED))
            }
            for name, model in MODELS.items()
        },
        "rows": {
            str(capacity): {
                _column("H100", fp8): found(replace(one_gpu, row_capacity=capacity), "H100", fp8=fp8, software=FUSED)
                for fp8 in (False, True)
            }
            for capacity in _CAPACITIES
        },
        "changes": {
            change: {name: [saved(model, fields, fp8=fp8) for fp8 in (False, True)] for name, model in MODELS.items()}
            for change, fields in FUSIONS.items()
        },
        "heads": {
            kind: {name: head_ms(packed(model, fp8=False), kernels) for name, model in MODELS.items()}
            for kind, kernels in HEADS.items()
        },
        "blocks": {
            str(block): {name: found(model, "H100", fp8=False, block=block) for name, model in MODELS.items()}
            for block in (128, 64)
        },
        "published": {known.name: known.comparison() for known in PUBLISHED},
    }


def _layout(model: Model) -> dict[str, int]:
    work = packed(model, fp8=False).work
    return {
        "tensor_parallel": model.tensor_parallel,
        "pipeline_parallel": model.pipeline_parallel,
        "data_parallel": model.data_parallel,
        "pairs": model.batch,
        "row_capacity": model.row_capacity,
        "unique_tokens": work.unique_tokens,
        "targets": work.targets,
    }


def saved(model: Model, fields: dict, *, fp8: bool) -> float:
    """Milliseconds of a step that a change saves alone, on H100."""
    changed = found(model, "H100", fp8=fp8, software=replace(SINGLE, **fields))
    return found(model, "H100", fp8=fp8)["total"] - changed["total"]


def head_ms(run: Run, kernels: HeadKernels) -> float:
    """Of a step, on H100."""
    return 1e3 * run.layout.num_rows * head(run, H100, kernels)


def _column(device: str, fp8: bool) -> str:
    return f"{device} {'FP8' if fp8 else 'bf16'}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("docs/results/step-time.json"), help="file of the results")
    given = parser.parse_args()
    given.output.write_text(json.dumps(results(), indent=1) + "\n")
    fill_pages()


if __name__ == "__main__":
    main()
