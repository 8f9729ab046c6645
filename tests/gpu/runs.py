"""Training runs of a tiny model with the worker of the parallel tests; NeMo is loaded once per check."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from filelock import FileLock

from nemo_minordpo import host
from nemo_minordpo.records import StepMetrics
from tests.benchmarks import be_the_only_rank
from tests.comparison import largest
from tests.gpu import rehearsal
from tests.gpu.runner import ROOT
from tests.ports import port_for_ranks

# Multiples of 16, as FP8 matrix products require, and heads of 32, which FlexAttention's kernels support.
SIZES: dict[str, Any] = {"hidden_size": 128, "intermediate_size": 256}
HF, NEMO, PAIRS, VALIDATION = "hf", "base.nemo", "train.jsonl", "validation.jsonl"
SGD = [
    "model.optim.name=sgd", "model.optim.betas=null", "model.optim.lr=5e-3", "model.optim.sched.name=constant",
]  # fmt: skip
ADAM = ["model.optim.name=adamw", "model.optim.lr=3e-4"]
# Works with bfloat16 weights and float32 main weights without Apex
ADAM_WITH_MAIN_WEIGHTS = ["model.optim.name=mcore_distributed_optim", "model.optim.lr=3e-4"]


def prepared(folder: Path, *, biases: float = 0.1, longer_by: int = 0) -> Path:
    """The folder, with pairs and the tiny model in both formats, created by the first check that needs them."""
    folder.mkdir(exist_ok=True)
    with FileLock(folder / "prepared.lock"):  # checks run in parallel
        if not (folder / NEMO).exists():
            from nemo_minordpo.convert.hf_to_nemo import import_hf
            from tests.tiny import write_model, write_pairs

            write_pairs(folder / PAIRS, count=22, seed=0, longer_by=longer_by)
            write_pairs(folder / VALIDATION, count=5, seed=1, longer_by=longer_by)
            write_model(folder / HF, biases=biases, **SIZES)
            import_hf(folder / HF, folder / NEMO, overwrite=True)
    return folder


def job(folder: Path, name: str, overrides: list[str], *, precision: str = "fp32", steps: int = 8, **more: Any) -> dict:
    """A job of tests/parallel/worker.py: a run folder `name` on one rank."""
    return {
        "overrides": [
            f"precision={precision}",
            f"pretrained_checkpoint.restore_from_path={folder / NEMO}",
            f"model.data.data_prefix.train=[{folder / PAIRS}]",
            f"exp_manager.explicit_log_dir={folder / name}",
            "exp_manager.create_tensorboard_logger=false",
            "model.dpo.ref_policy_kl_penalty=0.1",
            "model.global_batch_size=8",
            "model.data.packed_sequence_size=512",
            f"trainer.dpo.max_steps={steps}",
            "trainer.dpo.max_epochs=99",
            "trainer.dpo.save_nemo=false",
            *overrides,
        ],
        "dies_after": None, "separate": 0, "copy_of": None, "log_probs": None, **more,
    }  # fmt: skip


def do(folder: Path, name: str, jobs: list[dict]) -> None:
    """Run jobs one after another, in this process; NeMo must not be imported yet."""
    from nemo_minordpo.train import throughput
    from tests.parallel import worker

    if os.environ.get(rehearsal.ACTIVE):
        throughput._CUDA_N = 256  # the GPU is emulated, and nothing is measured
    be_the_only_rank()
    worker.main(_file_of(folder, name, jobs))


def do_on_cpu(folder: Path, name: str, jobs: list[dict]) -> None:
    """Like `do`, but in a process that sees no GPU."""
    be_the_only_rank()
    subprocess.run(
        [sys.executable, "-m", "tests.parallel.worker", str(_file_of(folder, name, jobs))],
        cwd=ROOT, env={**os.environ, "CUDA_VISIBLE_DEVICES": ""}, check=True,
    )  # fmt: skip


def without_transformer_engine() -> None:
    """Use Megatron-Core's local layers even if Transformer Engine is installed; call before anything imports NeMo."""
    host.has_transformer_engine = lambda: False


def metrics(folder: Path, name: str, *, split: str = "train") -> list[StepMetrics]:
    lines = (folder / name / "metrics.jsonl").read_text().splitlines()
    return [line for line in map(StepMetrics.from_json, lines) if line.split == split]


def largest_difference(ours: list[StepMetrics], expected: list[StepMetrics]) -> float:
    """Largest difference of losses, rewards and log-probabilities over all steps, relative to values above 1.

    Raises:
        AssertionError: the steps differ.
    """
    if [line.step for line in ours] != [line.step for line in expected]:
        raise AssertionError(f"steps {[line.step for line in ours]} and {[line.step for line in expected]}")
    names = ("loss", "rewards/chosen", "rewards/rejected", "logps/chosen", "logps/rejected")
    return largest(
        abs(here.values[name] - there.values[name]) / max(abs(there.values[name]), 1.0)
        for here, there in zip(ours, expected, strict=True)
        for name in names
    )


def one_step_late(lines: list[StepMetrics]) -> list[StepMetrics]:
    """The same steps, each with the values of the step before: a control for comparisons of curves."""
    return [replace(line, values=before.values) for line, before in zip(lines, [lines[0], *lines[:-1]], strict=True)]


def _file_of(folder: Path, name: str, jobs: list[dict]) -> Path:
    port = port_for_ranks()
    path = folder / f"jobs_{name}.json"
    path.write_text(json.dumps([{**item, "port": port} for item in jobs]))
    return path
