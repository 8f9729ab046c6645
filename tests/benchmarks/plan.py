"""Compare `minordpo plan` with `minordpo train`: memory of the fullest rank, seconds per step.

python -m tests.benchmarks.plan               # writes docs/results/plan.json and fills the pages
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from nemo_minordpo.config import compose, load
from nemo_minordpo.core.memory import GIB
from nemo_minordpo.records import StepMetrics
from nemo_minordpo.train.plan import Device, make_plan
from tests.benchmarks.inputs import Inputs, make_inputs
from tests.benchmarks.tables import fill_pages

STEPS, EFFICIENCY = 5, 0.6
RECOMPUTE = [
    "model.activations_checkpoint_granularity=full", "model.activations_checkpoint_method=uniform",
    "model.activations_checkpoint_num_layers=1",
]  # fmt: skip
# (model, pairs, what differs)
CASES = (
    ("30M", "zero-shot", ["model.global_batch_size=16"]),
    ("30M", "zero-shot", ["model.global_batch_size=64"]),
    ("30M", "zero-shot", ["model.global_batch_size=64", "model.data.packed_sequence_size=1024"]),
    ("30M", "zero-shot", ["model.global_batch_size=64", *RECOMPUTE]),
    ("30M", "zero-shot", ["model.global_batch_size=64", "model.optim.name=sgd", "model.optim.betas=null"]),
    ("30M", "zero-shot", ["model.global_batch_size=64", "trainer.devices=2", "model.tensor_model_parallel_size=2"]),
    ("30M", "zero-shot", ["model.global_batch_size=64", "trainer.devices=2", "model.pipeline_model_parallel_size=2"]),
    ("30M", "zero-shot", ["model.global_batch_size=64", "trainer.devices=2"]),
    ("30M", "few-shot", ["model.global_batch_size=8"]),
    ("135M", "zero-shot", ["model.global_batch_size=8"]),
    ("135M", "zero-shot", ["model.global_batch_size=32"]),
    ("135M", "zero-shot", ["model.global_batch_size=32", *RECOMPUTE]),
    ("134M", "zero-shot", ["model.global_batch_size=32", "trainer.devices=2", "model.tensor_model_parallel_size=2"]),
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/gsm8k"), help="folder of GSM8K's train.jsonl")
    parser.add_argument("--work", type=Path, default=Path("runs/bench"), help="folder for models and pairs")
    parser.add_argument("--output", type=Path, default=Path("docs/results/plan.json"), help="results file")
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    inputs = make_inputs(given.data, given.work.absolute())
    rows = []
    for model, pairs, settings in CASES:
        rows.append(run_case(inputs, model, pairs, settings))
        print(rows[-1], file=sys.stderr, flush=True)
        given.output.write_text(json.dumps(rows, indent=1) + "\n")
    fill_pages()


def run_case(inputs: Inputs, model: str, pairs: str, settings: list[str]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        batch = int(settings[0].removeprefix("model.global_batch_size="))
        lines = inputs.pairs[pairs].read_text(encoding="utf-8").splitlines(keepends=True)
        # only the training pairs: the reference is evaluated for each, once for all cases with the same pairs
        (Path(folder) / "pairs.jsonl").write_text("".join(lines[: STEPS * batch]), encoding="utf-8")
        overrides = [
            f"pretrained_checkpoint.restore_from_path={inputs.nemo[model]}",
            f"model.data.data_prefix.train=[{folder}/pairs.jsonl]", f"exp_manager.explicit_log_dir={folder}/run",
            f"model.dpo.reference_cache={inputs.nemo[model].parent}/reference_cache",
            "model.dpo.ref_policy_kl_penalty=0.1", "model.data.seq_length=4096", *settings,
        ]  # fmt: skip
        plan = make_plan(load(compose(overrides)))
        subprocess.run([sys.executable, "-m", "nemo_minordpo", "train", *overrides], check=True)
        metrics = (Path(folder) / "run/metrics.jsonl").read_text().splitlines()
    steps = [StepMetrics.from_json(line).values for line in metrics]
    peak = steps[0]["model_tflops"] / steps[0]["matmul_peak_fraction"] * 1e12
    device = Device(memory=0, flops=peak / plan.ranks, efficiency=EFFICIENCY)
    return {
        "model": model,
        "pairs": pairs,
        "settings": settings,
        "planned_gib": plan.memory.total / GIB,
        "measured_gib": steps[-1]["peak_memory_gib"],
        "planned_seconds": plan.step_seconds(device),
        "measured_seconds": statistics.median(step["step_s"] for step in steps[1:]),
    }


if __name__ == "__main__":
    main()
