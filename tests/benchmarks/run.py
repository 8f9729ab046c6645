"""Steps per second of this project, NeMo-Aligner and TRL: one run, alternating, same weights, same pairs.

    make bench                                   # all cases; writes docs/results/benchmark.json and .png
    python -m tests.benchmarks.run --case 30M/zero-shot/tp1 --rounds 3 --output runs/bench/result.json

Every competitor is a process (with tensor parallelism, one per rank) that does one step when asked, while the others
sleep. A round asks each once, in turn. The first step of a process is a warm-up and does not count. 30M: all are loaded
at once. 135M: ours and one other, because all of them do not fit into 24 GiB. 0.5B: one, loaded anew for every round.

Ours and TRL also run in bfloat16, TRL's default, where a machine without bfloat16 instructions is slower: see the
results' `machine`, which also has the peak of matrix products before and after a case, and the load by other processes.
Every round has the same pairs, so its seconds differ only with the machine: a case counts as measured if those of no
competitor differ by more than a factor of SPREAD.
"""

import argparse
import json
import os
import random
import socket
import statistics
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tests.benchmarks import Settings
from tests.benchmarks.inputs import Inputs, make_inputs
from tests.benchmarks.machine import OtherLoad, describe
from tests.benchmarks.show import add_result
from tests.benchmarks.tables import fill_pages

ROOT = Path(__file__).parent.parent.parent
SPREAD = 1.3  # slowest / fastest round


@dataclass(frozen=True)
class Trainer:
    """How a competitor is started; tables/cpu.py has the names to show."""

    worker: str
    precision: str = "fp32"
    torch_products: bool = False


OURS = "ours"
TRAINERS = {
    OURS: Trainer("ours_worker"),
    "ours, bf16": Trainer("ours_worker", precision="bf16"),
    "ours, torch's matmul": Trainer("ours_worker", torch_products=True),
    "nemo-aligner 0.7.0": Trainer("aligner_worker"),
    "trl": Trainer("trl_worker"),
    "trl, bf16": Trainer("trl_worker", precision="bf16"),
}


@dataclass(frozen=True)
class Case:
    """A comparison; `micro_batch_size`, in pairs, is for Aligner and TRL: ours packs rows of 4096 tokens.

    For TRL on short pairs, 1, 2 and 8 pairs were not clearly faster than 4; with larger models, fewer fit into memory.
    """

    model: str
    pairs: str
    tensor_parallel: int
    global_batch_size: int
    micro_batch_size: int
    rounds: int

    @property
    def name(self) -> str:
        return f"{self.model}/{self.pairs}/tp{self.tensor_parallel}"

    def trainers(self, machine: dict[str, Any]) -> list[str]:
        """The competitors: torch's own products where ours differ, emulated bfloat16 only for the smallest model."""
        without = set() if "float32" in machine["replaced"] else {"ours, torch's matmul"}
        if self.tensor_parallel > 1:
            without |= {"trl", "trl, bf16", "ours, bf16"}
        if self.model != "30M" and "bfloat16" in machine["replaced"]:
            without |= {"trl, bf16"}
        return [name for name in TRAINERS if name not in without]

    def groups(self, names: list[str]) -> list[list[str]]:
        """Groups of competitors that are loaded at the same time."""
        if self.model == "30M":
            return [names]
        if self.model == "0.5B":
            return [[name] for name in names] * self.rounds
        return [[OURS, other] for other in names if other != OURS]


CASES = (
    Case("30M", "zero-shot", 1, 16, 4, 5),
    Case("135M", "zero-shot", 1, 8, 2, 2),
    Case("30M", "few-shot", 1, 4, 1, 3),
    Case("135M", "few-shot", 1, 2, 1, 2),
    Case("30M", "zero-shot", 2, 16, 4, 3),
    Case("134M", "zero-shot", 2, 8, 2, 2),
    Case("0.5B", "zero-shot", 1, 4, 1, 2),
)


class Competitor:
    """A loaded trainer that does one step when asked."""

    def __init__(self, name: str, case: Case, inputs: Inputs, work: Path, *, python: Path) -> None:
        ranks = case.tensor_parallel
        threads = max(len(os.sched_getaffinity(0)) // ranks, 1)
        settings = Settings(
            hf=str(inputs.hf[case.model]), nemo=str(inputs.nemo[case.model]), pairs=str(inputs.pairs[case.pairs]),
            global_batch_size=case.global_batch_size, micro_batch_size=case.micro_batch_size, seq_length=4096,
            beta=0.1, lr=1e-6, tensor_parallel=ranks, threads=threads, steps=case.rounds + 1,
            torch_products=TRAINERS[name].torch_products, precision=TRAINERS[name].precision,
            work=tempfile.mkdtemp(dir=work),
        )  # fmt: skip
        file = Path(tempfile.mkdtemp(dir=work)) / "settings.json"
        file.write_text(json.dumps(asdict(settings)))
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.log = file.with_name("log.txt")
        self._ranks = [
            subprocess.Popen(
                [str(python), "-m", f"tests.benchmarks.{TRAINERS[name].worker}", str(file)],
                cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log.open("a"), text=True,
                env={
                    **os.environ, "OMP_NUM_THREADS": str(threads), "RANK": str(rank), "LOCAL_RANK": str(rank),
                    "WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks), "GROUP_RANK": "0",
                    "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "benchmark",
                },
            )
            for rank in range(ranks)
        ]  # fmt: skip
        self.ready = self._answer()

    def step(self) -> dict[str, Any]:
        for rank in self._ranks:
            assert rank.stdin is not None
            rank.stdin.write("step\n")
            rank.stdin.flush()
        return self._answer()

    @property
    def pids(self) -> list[int]:
        return [rank.pid for rank in self._ranks]

    def close(self) -> None:
        for rank in self._ranks:
            rank.kill()
            rank.wait()

    def _answer(self) -> dict[str, Any]:
        stdout = self._ranks[0].stdout
        assert stdout is not None
        line = stdout.readline()
        if not line:
            raise RuntimeError(f"a worker ended: {self.log}\n{self.log.read_text()[-3000:]}")
        return json.loads(line)


def run_case(case: Case, inputs: Inputs, work: Path, *, trl: Path, only: list[str] | None) -> dict[str, Any]:
    """Medians, all rounds, ratios and the machine of one case, of all trainers or of ours and some others."""
    machine = describe()
    names = [name for name in case.trainers(machine) if only is None or name in (OURS, *only)]
    ready: dict[str, Any] = {}
    counted: dict[str, list[dict[str, Any]]] = {}
    beside_ours: dict[str, list[float]] = {}
    load = OtherLoad()
    for group in case.groups(names):
        group_ready, steps = run_group(group, case, inputs, work, load, trl=trl)
        ready |= group_ready
        for name, rows in steps.items():
            counted.setdefault(name, []).extend(rows)
            if len(group) > 1:  # round by round, so that disturbances of the machine affect both
                beside_ours[name] = _ratios(rows, steps[OURS])
    beside_ours = beside_ours or {name: _ratios(rows, counted[OURS]) for name, rows in counted.items()}
    results = {name: _summary(rows) for name, rows in counted.items()}
    spread = {name: row["slowest"] / row["fastest"] for name, row in results.items()}
    again = describe()
    return {
        "case": {"name": case.name, **asdict(case)},
        "machine": {
            "processor": machine["processor"], "replaced": machine["replaced"], "gflops_before": machine["gflops"],
            "gflops_after": again["gflops"], "load_of_others": load.share,
        },
        "ready": ready,
        "results": results,
        "speed_up": {name: statistics.median(ratios) for name, ratios in beside_ours.items()},
        "spread": spread,
        "measured": max(spread.values()) <= SPREAD,
    }  # fmt: skip


def run_group(
    names: list[str], case: Case, inputs: Inputs, work: Path, load: OtherLoad, *, trl: Path
) -> tuple[dict[str, Any], dict[str, list[dict[str, Any]]]]:
    """Each competitor's ready line, and its steps without the first."""
    competitors: dict[str, Competitor] = {}
    steps: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    rounds = 1 if len(names) == 1 else case.rounds
    try:
        for name in names:
            python = trl if TRAINERS[name].worker == "trl_worker" else Path(sys.executable)
            competitors[name] = Competitor(name, case, inputs, work, python=python)
        order = list(names)
        for number in range(rounds + 1):
            random.Random(number).shuffle(order)
            for name in order:
                with load.beside(competitors[name].pids):
                    step = competitors[name].step()
                steps[name].append(step)
                print(f"{case.name} round {number} {name}: {step['seconds']:.2f} s", file=sys.stderr)
        ready = {name: competitor.ready for name, competitor in competitors.items()}
    finally:
        for competitor in competitors.values():
            competitor.close()
    losses = {name: rows[0]["loss"] for name, rows in steps.items()}
    if any(abs(loss - 0.6931) > 0.01 for loss in losses.values()):
        raise RuntimeError(
            f"{case.name}: policy equals reference in the first step, so its loss must be ln 2: {losses}"
        )
    return ready, {name: rows[1:] for name, rows in steps.items()}


def _ratios(rows: list[dict[str, Any]], ours: list[dict[str, Any]]) -> list[float]:
    return [other["seconds"] / own["seconds"] for other, own in zip(rows, ours, strict=True)]


def _summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    seconds = [row["seconds"] for row in rows]
    summary = {
        "seconds": statistics.median(seconds),
        "fastest": min(seconds),
        "slowest": max(seconds),
        "rounds": seconds,
        "pairs_per_s": statistics.median(row["pairs"] / row["seconds"] for row in rows),
        "rss_peak_gib": max(row["rss_peak_gib"] for row in rows),
    }
    for name in ("matmul_peak_fraction", "tokens_per_s", "tokens_per_s_equivalent", "row_fill", "model_tflops"):
        if name in rows[0]:
            summary[name] = statistics.median(row[name] for row in rows)
    return summary


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/gsm8k"), help="folder of GSM8K's train.jsonl")
    parser.add_argument("--work", type=Path, default=Path("runs/bench"), help="folder for models, pairs and logs")
    parser.add_argument("--trl", type=Path, default=Path(".venv-trl/bin/python"), help="Python with TRL")
    parser.add_argument("--case", nargs="*", help=f"{', '.join(case.name for case in CASES)}; default: all")
    parser.add_argument("--rounds", type=int, help="default: each case's own")
    parser.add_argument("--trainers", nargs="*", choices=TRAINERS, help="besides ours; default: all")
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("docs/results/benchmark.json"),
        help="results file",
    )
    given = parser.parse_args()
    cases = [case for case in CASES if not given.case or case.name in given.case]
    if given.rounds:
        cases = [Case(**{**asdict(case), "rounds": given.rounds}) for case in cases]
    (given.work / "workers").mkdir(parents=True, exist_ok=True)
    inputs = make_inputs(given.data, given.work.absolute())
    # after each case, so that an interrupted run has its first results, and a later run adds others
    for case in cases:
        work = (given.work / "workers").absolute()
        result = run_case(case, inputs, work, trl=given.trl.absolute(), only=given.trainers)
        if not result["measured"]:
            print(f"{case.name}: not measured, rounds vary by more than {SPREAD}: {result['spread']}", file=sys.stderr)
        add_result(result, given.output, order=[case.name for case in CASES])
    fill_pages()


if __name__ == "__main__":
    main()
