"""The share of the machine's matmul peak that a training step reaches, and where the rest of its time goes.

    python -m tests.benchmarks.peak               # writes docs/results/peak.json and fills the pages
    python -m tests.benchmarks.peak --profile     # prints the operators of one step by time instead

The peak is measured before and after every step, so that a slowdown of the machine affects both. Only the operations
that the model needs (core/flops.py) count: recomputation does not.
"""

import argparse
import json
import multiprocessing
import os
import statistics
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from nemo_minordpo import host
from tests.benchmarks import Settings, be_the_only_rank
from tests.benchmarks.inputs import Inputs, make_inputs
from tests.benchmarks.tables import fill_pages

# (model, pairs per step)
CASES = (("30M", 64), ("135M", 8), ("135M", 32))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/gsm8k"), help="folder of GSM8K's train.jsonl")
    parser.add_argument("--work", type=Path, default=Path("runs/bench"), help="folder for models and pairs")
    parser.add_argument("--output", type=Path, default=Path("docs/results/peak.json"), help="results file")
    parser.add_argument("--steps", type=int, default=5, help="measured steps, after one for warm-up")
    parser.add_argument("--model", choices=["30M", "135M"], help="default: both")
    parser.add_argument("--profile", action="store_true")
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    inputs = make_inputs(given.data, given.work.absolute())
    rows = []
    for model, pairs in CASES:
        if given.model in (None, model):
            # one process per case: NeMo sets up a process for a single model
            with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
                row = process.submit(run_case, inputs, model, pairs, given.steps, given.profile).result()
            rows.append({"model": model, "pairs": pairs, **row})
    if not given.profile:
        given.output.write_text(json.dumps(rows, indent=1) + "\n")
        fill_pages()


def run_case(inputs: Inputs, model: str, pairs: int, steps: int, with_profile: bool) -> dict[str, Any]:
    be_the_only_rank()
    host.prepare()
    from tests.benchmarks.ours_worker import build_trainer

    settings = Settings(
        hf=str(inputs.hf[model]), nemo=str(inputs.nemo[model]), pairs=str(inputs.pairs["zero-shot"]),
        global_batch_size=pairs, micro_batch_size=1, seq_length=4096, beta=0.1, lr=1e-6, tensor_parallel=1,
        threads=len(os.sched_getaffinity(0)), steps=steps + 1,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        trainer = build_trainer(settings, Path(folder))
        if not with_profile:
            return measure(trainer)
        profile(trainer)
        return {}


def measure(trainer: Any) -> dict[str, Any]:
    """Seconds, peak and share of each step but the first."""
    import torch

    from nemo_minordpo.train.throughput import measure_matmul_peak
    from tests.benchmarks.ours_worker import batches_in_file_order

    seconds, shares, peaks = [], [], [measure_matmul_peak(torch.float32)]
    for coming in batches_in_file_order(trainer):
        values = trainer._train_step(coming).values
        peaks.append(measure_matmul_peak(torch.float32))
        seconds.append(values["step_s"])
        shares.append(values["model_tflops"] * 1e12 / statistics.mean(peaks[-2:]))
        print(f"{seconds[-1]:.2f} s, {shares[-1]:.1%} of {peaks[-1] / 1e9:.0f} GFLOP/s", file=sys.stderr)
    return {"seconds": seconds[1:], "shares": shares[1:], "peak_gflops": statistics.median(peaks) / 1e9}


def profile(trainer: Any) -> None:
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as torch_profile

    from tests.benchmarks.ours_worker import batches_in_file_order

    batches = batches_in_file_order(trainer)
    trainer._train_step(next(batches))
    with torch_profile(activities=[ProfilerActivity.CPU], record_shapes=True) as record:
        trainer._train_step(next(batches))
    print(record.key_averages().table(sort_by="self_cpu_time_total", row_limit=40, max_name_column_width=60))


if __name__ == "__main__":
    main()
