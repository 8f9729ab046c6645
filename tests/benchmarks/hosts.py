"""Seconds per step of `minordpo train` with host=aligner and host=bridge, in turns, each in its own environment.

    python -m tests.benchmarks.hosts     # after make setup-bridge; writes docs/results/hosts.json, fills the pages

The same weights, pairs and settings, with 30M at TP1 and TP2, in float32 on two cores. A run trains a few steps on the
same pairs; the first step does not count.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from nemo_minordpo.records import StepMetrics
from tests.benchmarks.inputs import Inputs, make_inputs
from tests.benchmarks.tables import fill_pages

MODEL, PAIRS, STEPS, BATCH = "30M", "zero-shot", 6, 16


def run(host: str, python: Path, inputs: Inputs, *, tensor_parallel: int) -> list[StepMetrics]:
    """The metrics of each step of one run."""
    with tempfile.TemporaryDirectory() as folder:
        pairs = Path(folder, "pairs.jsonl")
        pairs.write_text("".join(inputs.pairs[PAIRS].read_text().splitlines(keepends=True)[: STEPS * BATCH]))
        start = inputs.nemo[MODEL] if host == "aligner" else inputs.hf[MODEL]
        command = [
            str(python), "-m", "nemo_minordpo", "train", f"host={host}",
            f"pretrained_checkpoint.restore_from_path={start.absolute()}",
            f"model.data.data_prefix.train=[{pairs}]",
            f"exp_manager.explicit_log_dir={folder}/run", "exp_manager.create_tensorboard_logger=false",
            "model.dpo.ref_policy_kl_penalty=0.1", f"model.global_batch_size={BATCH}",
            f"trainer.dpo.max_steps={STEPS}", f"trainer.devices={tensor_parallel}",
            f"model.tensor_model_parallel_size={tensor_parallel}",
        ]  # fmt: skip
        threads = max(len(os.sched_getaffinity(0)) // tensor_parallel, 1)
        subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": str(threads)})
        lines = map(StepMetrics.from_json, Path(folder, "run/metrics.jsonl").read_text().splitlines())
        return [line for line in lines if line.split == "train"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bridge", type=Path, default=Path(".venv-bridge/bin/python"), help="Python of host=bridge")
    parser.add_argument("--data", type=Path, default=Path("../shared/data/gsm8k"), help="folder of GSM8K's train.jsonl")
    parser.add_argument("--work", type=Path, default=Path("runs/bench"), help="folder for models and pairs")
    parser.add_argument("--rounds", type=int, default=2, help="runs of each kind")
    parser.add_argument("--output", type=Path, default=Path("docs/results/hosts.json"), help="results file")
    given = parser.parse_args()
    from nemo_minordpo.host.processor import processor_name

    given.work.mkdir(parents=True, exist_ok=True)
    inputs = make_inputs(given.data, given.work.absolute())
    pythons = {"aligner": Path(sys.executable), "bridge": given.bridge}
    rows: list[dict[str, Any]] = []
    for tensor_parallel in (1, 2):
        seconds: dict[str, list[float]] = {host: [] for host in pythons}
        losses: dict[str, list[float]] = {}
        for _ in range(given.rounds):
            for host, python in pythons.items():
                lines = run(host, python, inputs, tensor_parallel=tensor_parallel)
                seconds[host] += [line.values["step_s"] for line in lines[1:]]
                losses[host] = [line.values["loss"] for line in lines]
        apart = max(abs(one - two) / two for one, two in zip(losses["bridge"], losses["aligner"], strict=True))
        rows += [
            {
                "tensor_parallel": tensor_parallel, "host": host, "seconds": statistics.median(values),
                "fastest": min(values), "slowest": max(values), "losses_apart": apart,
            }
            for host, values in seconds.items()
        ]  # fmt: skip
    result = {"processor": processor_name(), "pairs_per_step": BATCH, "rows": rows}
    given.output.write_text(json.dumps(result, indent=1) + "\n")
    fill_pages()


if __name__ == "__main__":
    main()
