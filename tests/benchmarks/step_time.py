"""A step's expected time on H100 and H200, in parts: core/step_time.py with published kernel speeds.

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
    HeadKernels,
    Run,
    Software,
    StepSeconds,
    head,
    launches,
    step_seconds,
    utilisation,
)
from nemo_minordpo.pairs.tokens import TokenArrays
from nemo_minordpo.train.data.dataset import PairBatches
from tests.benchmarks.assumed import (
    DEVICES,
    FUSED,
    FUSIONS,
    H100,
    HEADS,
    LLAMA_8B,
    LLAMA_70B,
    PEAK,
    QWEN_1_5B,
    SINGLE,
    in_fp8,
)
from tests.benchmarks.published import PUBLISHED
from tests.benchmarks.tables import fill_pages


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


_SPEED_CHECK = ((60, 140), (25, 125), (25, 125))  # 100 tokens; responses of 150 that share half
_METAMATH = ((80, 240), (10, 110), (40, 140))  # 400 positions per pair, 60 % of them targets


def _shipped(name: str, ranks: int, size: ModelSize) -> Model:
    """A model with the layout of conf/model."""
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
    """Random tokens; the two tails of a pair differ in their first token."""
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
    """A typical step as the packer lays it out: means over steps and ranks."""
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
    """Number of (query, key) positions in the non-empty blocks of a row's mask, which FlexAttention computes.

    Args:
        segments: [m, 4], start, branch, chosen_end, end of each pair (core/pair_packing.py); padding counts as a pair.
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
    """Memory of the fullest rank, by core/memory.py, without FP8 copies of weights."""
    numerics = Numerics(weight=2, gradient=4, optimizer=12 / run.data_parallel, activation=2)
    return fullest_rank(run.size, run.layout, numerics, tied=run.tied, cuda=True).total / GIB


def pairs_per_second(run: Run, step: StepSeconds) -> float:
    """Throughput per GPU."""
    return run.work.pairs / step.total / run.ranks


_CAPACITIES = (1024, 2048, 3072, 4096, 8192, 16384, 24576)


def found(model: Model, device: str, *, fp8: bool, software: Software = SINGLE, block: int = 128) -> dict[str, float]:
    """Milliseconds of the parts, their sum, and figures derived from it."""
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
    """The content of all tables in docs/step-time.md."""
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
    """Milliseconds per step that a single change saves on H100."""
    changed = found(model, "H100", fp8=fp8, software=replace(SINGLE, **fields))
    return found(model, "H100", fp8=fp8)["total"] - changed["total"]


def head_ms(run: Run, kernels: HeadKernels) -> float:
    """Milliseconds per step on H100."""
    return 1e3 * run.layout.num_rows * head(run, H100, kernels)


def _column(device: str, fp8: bool) -> str:
    return f"{device} {'FP8' if fp8 else 'bf16'}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("docs/results/step-time.json"), help="results file")
    given = parser.parse_args()
    given.output.write_text(json.dumps(results(), indent=1) + "\n")
    fill_pages()


if __name__ == "__main__":
    main()
