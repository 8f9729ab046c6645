"""A tiny model and pairs, and the runs that the tests compare: one spawn per number of ranks."""

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from nemo_minordpo.records import StepMetrics
from tests.parallel.round_trip import write_architectures
from tests.parallel.runs_of import GROUPS, RANKS
from tests.ports import port_for_ranks
from tests.tiny import write_model, write_pairs

ROOT = Path(__file__).parent.parent.parent


@dataclass
class Runs:
    """Folders of everything that was run."""

    path: Path

    def metrics(self, name: str, split: str = "train") -> list[StepMetrics]:
        lines = (self.path / name / "metrics.jsonl").read_text().splitlines()
        return [line for line in map(StepMetrics.from_json, lines) if line.split == split]


@pytest.fixture(scope="session")
def workspace(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("parallel")
    from nemo_minordpo.convert.hf_to_nemo import import_hf

    for name, kind in (("hf", {}), ("hf_tied", {"tied": True}), ("hf_qwen3", {"qwen3": True})):
        write_model(folder / name, **kind)
        import_hf(folder / name, folder / f"{name}.nemo")
    write_architectures(folder / "architectures")
    write_pairs(folder / "train.jsonl", count=22, seed=0)
    write_pairs(folder / "validation.jsonl", count=5, seed=1)
    return folder


@pytest.fixture(scope="session")
def runs(workspace, request) -> Runs:
    """Runs of all groups (runs_of.py) that the selected tests need, as listed in RUNS_OF of their modules."""
    asked_for = {name for item in request.session.items for name in getattr(item.module, "RUNS_OF", ())}
    for ranks in RANKS:
        jobs = [one for name, group in GROUPS.items() if name in asked_for for one in group(workspace, ranks)]
        if jobs:
            spawn(workspace, ranks=ranks, jobs=jobs)
    return Runs(workspace)


def spawn(workspace: Path, *, ranks: int, jobs: list[dict], log: str | None = None) -> None:
    """Run jobs one after another on `ranks` processes over gloo; each rank logs to log_LOG_RANK.txt."""
    log = log or str(ranks)
    first = port_for_ranks()
    file = workspace / f"jobs_{log}.json"
    file.write_text(json.dumps([{**item, "port": first + 1} for item in jobs]))
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.parallel.worker", str(file)],
            cwd=ROOT,
            env={
                **environment,
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(ranks),
                "MASTER_ADDR": "127.0.0.1",
                "GROUP_RANK": "0",
                "LOCAL_WORLD_SIZE": str(ranks),
                "TORCHELASTIC_RUN_ID": "tests",
            },
            stdout=(workspace / f"log_{log}_{rank}.txt").open("w"),
            stderr=subprocess.STDOUT,
        )
        for rank in range(ranks)
    ]
    try:
        failed = first_to_fail(processes, within_seconds=1800)
    finally:
        for process in processes:
            process.kill()
    if failed is not None:
        said = (workspace / f"log_{log}_{failed}.txt").read_text()
        raise AssertionError(
            f"rank {failed} ended with {processes[failed].returncode}, before the others:\n{said[-3000:]}"
        )


def first_to_fail(processes: list[subprocess.Popen], *, within_seconds: float) -> int | None:
    """The rank that failed first: the others then only report lost connections."""
    deadline = time.monotonic() + within_seconds
    while time.monotonic() < deadline:
        codes = [process.poll() for process in processes]
        for rank, code in enumerate(codes):
            if code:
                return rank
        if None not in codes:
            return None
        time.sleep(0.1)
    raise TimeoutError(f"ranks still run after {within_seconds} s: {[process.poll() for process in processes]}")
