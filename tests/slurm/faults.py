"""Fault-injected training jobs, each with one fault at a random moment, compared with an undisturbed job.

    python -m tests.slurm.faults        # writes docs/results/faults.json and fills docs/faults.md

Every job runs through launchers/minordpo.sub on two of a cluster's three virtual nodes, with two ranks per node. It
must complete without manual intervention, bit-identical to the undisturbed run.
"""

import argparse
import contextlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from math import nan
from pathlib import Path
from typing import Any

from nemo_minordpo.records import RunEvent, StepMetrics
from tests.benchmarks.tables import fill_pages
from tests.comparison import without_measured
from tests.slurm.cluster import Cluster, why_not

ROOT = Path(__file__).parent.parent.parent
STEPS, SAVE_INTERVAL, STALL_SECONDS = 24, 4, 20
LAYOUTS = {
    "tp2pp2": ["model.tensor_model_parallel_size=2", "model.pipeline_model_parallel_size=2"],
    "tp2dp2": ["model.tensor_model_parallel_size=2"],
}
_PATIENCE = 420  # seconds for a whole fault-injected job


@dataclass
class Inputs:
    """What every job trains on; `disk` is a separate small file system that can be filled."""

    nemo: Path
    pairs: Path
    runs: Path
    disk: Path


@dataclass
class Outcome:
    """Outcome of one fault-injected job; times in seconds, starting at the fault."""

    fault: str
    layout: str
    at_step: int
    bits_equal: bool
    state: str
    steps_lost: int
    slurm_seconds: float  # until the launcher restarts the ranks
    our_seconds: float  # from there to the first step
    attempts: int
    cause: str


class Job:
    """A submitted training."""

    def __init__(
        self,
        cluster: Cluster,
        inputs: Inputs,
        name: str,
        layout: str,
        *options: str,
        disk: bool = False,
        more: Sequence[str] = (),
        **environment: str,
    ) -> None:
        """`options` are for sbatch, `more` are overrides; `disk`: run on the small file system."""
        self.cluster, self.layout = cluster, layout
        self.run = (inputs.disk if disk else inputs.runs) / name
        self.log = inputs.runs / f"{re.sub(r'[^a-z0-9_]', '_', name)}.log"
        self.id = cluster.run(
            "sbatch", "--parsable", "--nodes=2", f"--output={self.log}", *options, str(ROOT / "launchers/minordpo.sub"),
            *self.overrides(inputs), *more, cwd=inputs.runs, OMP_NUM_THREADS="1", **environment,
        )  # fmt: skip

    def overrides(self, inputs: Inputs) -> list[str]:
        return [
            f"pretrained_checkpoint.restore_from_path={inputs.nemo}",
            f"model.data.data_prefix.train=[{inputs.pairs}]",
            f"exp_manager.explicit_log_dir={_quoted(str(self.run))}",
            "exp_manager.create_tensorboard_logger=false",
            f"exp_manager.max_time_without_progress=00:00:00:{STALL_SECONDS}",
            "model.dpo.ref_policy_kl_penalty=0.1", "model.dpo.preference_loss=minordpo", "model.optim.lr=1e-4",
            "model.global_batch_size=16", "model.data.packed_sequence_size=1024", "trainer.devices=2",
            f"trainer.dpo.max_steps={STEPS}", "trainer.dpo.max_epochs=99",
            f"trainer.dpo.save_interval={SAVE_INTERVAL}", *LAYOUTS[self.layout],
        ]  # fmt: skip

    def steps(self) -> list[StepMetrics]:
        """The recorded steps; empty while the file is being replaced."""
        try:
            return [StepMetrics.from_json(line) for line in (self.run / "metrics.jsonl").read_text().splitlines()]
        except (FileNotFoundError, ValueError):
            return []

    def events(self, kind: str) -> list[RunEvent]:
        path = self.run / "events.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        return [event for event in map(RunEvent.from_json, lines) if event.event == kind]

    def wait_for_step(self, step: int) -> None:
        self.wait(lambda: len(self.steps()) >= step, f"step {step}")

    def wait_for_end(self) -> str:
        self.wait(self.has_ended, "the end")
        return self.cluster.state(self.id)

    def has_ended(self) -> bool:
        return self.cluster.state(self.id) in ("COMPLETED", "FAILED", "TIMEOUT", "CANCELLED")

    def logged(self, event: str) -> list[float]:
        """Times (seconds since the epoch) at which the launcher logged `event`."""
        lines = self.log.read_text(errors="replace").splitlines() if self.log.exists() else []
        return [_seconds(line.split()[0]) for line in lines if f" job {self.id}." in line and event in line]

    def wait(self, condition: Callable[[], bool], what: str) -> None:
        until = time.monotonic() + _PATIENCE
        while not condition():
            if time.monotonic() > until:
                raise TimeoutError(f"{self.run.name}: {_PATIENCE} s for {what}\n{self.log.read_text()[-4000:]}")
            time.sleep(0.1)


Mend = Callable[[], None]


def _kill_rank(job: Job, draw: random.Random) -> Mend | None:
    os.kill(job.cluster.ranks(job.id)[draw.randrange(4)], signal.SIGKILL)


def _freeze_rank(job: Job, draw: random.Random) -> Mend | None:
    os.kill(job.cluster.ranks(job.id)[draw.randrange(4)], signal.SIGSTOP)


def _power_cut(job: Job, draw: random.Random) -> Mend | None:
    node = draw.choice(job.cluster.nodes(job.id))
    job.cluster.power_cut(node)
    return lambda: job.cluster.power_on(node)


def _reboot(job: Job, draw: random.Random) -> Mend | None:
    """Restart a node before Slurm notices; not the first, where Slurm would miss the batch script."""
    node = job.cluster.nodes(job.id)[1]
    job.cluster.power_cut(node)
    time.sleep(1)
    job.cluster.power_on(node)


def _partition(job: Job, draw: random.Random) -> Mend | None:
    node = job.cluster.nodes(job.id)[1]
    job.cluster.cut_off(node)
    return lambda: job.cluster.connect(node)


def _requeue(job: Job, draw: random.Random) -> Mend | None:
    job.cluster.run("scontrol", "requeue", job.id)


def _usr1(job: Job, draw: random.Random) -> Mend | None:
    job.cluster.run("scancel", "--batch", "--signal=USR1", job.id)


def _term(job: Job, draw: random.Random) -> Mend | None:
    job.cluster.run("scancel", "--signal=TERM", job.id)  # to the ranks, like preemption with a grace period


def _fill_disk(job: Job, draw: random.Random) -> Mend | None:
    ballast = job.run.parent / "ballast"
    # a checkpoint may be using the same space
    with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as out:
        while (free := shutil.disk_usage(ballast.parent).free - 300_000) > 0:
            out.write(bytes(min(free, 2**20)))
    job.wait(lambda: bool(job.logged(": the disk of ")), "the full disk")
    ballast.unlink()


def _truncate(job: Job, draw: random.Random) -> Mend | None:
    newest = sorted((job.run / "checkpoints").glob("step_*"))[-1]
    file = draw.choice(sorted(newest.glob("*.distcp")))
    os.truncate(file, file.stat().st_size // 2)
    return _kill_rank(job, draw)


def _wait_for_limit(job: Job, draw: random.Random) -> Mend | None:
    job.wait(lambda: bool(job.logged("SIGUSR1")), "USR1 before the time limit")


# Each injects a fault, and returns a function that repairs the machine, not the job, once the job continues.
FAULTS: dict[str, Callable[[Job, random.Random], Mend | None]] = {
    "rank killed": _kill_rank, "power cut": _power_cut, "network partition": _partition, "scontrol requeue": _requeue,
    "USR1": _usr1, "TERM": _term, "time limit": _wait_for_limit, "rank frozen": _freeze_rank,
    "disk full": _fill_disk, "truncated checkpoint": _truncate, "node restarted": _reboot,
}  # fmt: skip


def run_with_fault(cluster: Cluster, inputs: Inputs, kind: str, layout: str, whole: Job, *, seed: int) -> Outcome:
    """Run one job to its end, with one fault."""
    draw = random.Random(seed)
    options = ["--time=2", "--signal=B:USR1@90"] if kind == "time limit" else []
    job = Job(cluster, inputs, f"{kind.replace(' ', '_')}_{layout}_{seed}", layout, *options, disk=kind == "disk full")
    if kind != "time limit":  # which occurs at its own time
        job.wait_for_step(draw.randint(SAVE_INTERVAL + 1 if kind == "truncated checkpoint" else 1, STEPS - 3))
        time.sleep(draw.random() * 0.3)
    time_of_fault = time.time()
    mend = FAULTS[kind](job, draw)
    if kind == "time limit":
        time_of_fault = job.logged("SIGUSR1")[0]  # the fault is the signal
    at_step = len(job.steps())
    job.wait(lambda: len(job.logged(": start ")) > 1 or job.has_ended(), "a second start")
    if mend is not None:
        mend()
    state = job.wait_for_end()
    starts = [moment for moment in job.logged(": start ") if moment > time_of_fault]
    resumed = [event for event in job.events("started") if _seconds(event.time) > time_of_fault]
    first_step = _seconds(resumed[0].time) if resumed else float("nan")
    done = _status(job)
    return Outcome(
        fault=kind,
        layout=layout,
        at_step=at_step,
        bits_equal=same_bits(job.run, whole.run),
        state=state,
        steps_lost=max(at_step - resumed[0].step, 0) if resumed else at_step,
        slurm_seconds=starts[0] - time_of_fault if starts else float("nan"),
        our_seconds=first_step - starts[0] if starts else float("nan"),
        attempts=len(job.events("started")),
        cause=next((_end_of(line) for line in done if line.startswith("attempt 1 ")), ""),
    )


def _quoted(text: str) -> str:
    """A text quoted as the value of a Hydra override."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def same_bits(run: Path, other: Path) -> bool:
    """Whether metrics (except times) and all weights of the trained model are identical."""
    return _metrics(run) == _metrics(other) and _weights(run) == _weights(other)


def _metrics(run: Path) -> list[Any]:
    lines = [StepMetrics.from_json(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [(line.split, line.step, without_measured(line)) for line in lines]


def _weights(run: Path) -> dict[str, bytes]:
    """{file in the archive: digest}, without files that contain paths."""
    import hashlib
    import tarfile

    with tarfile.open(run / "model.nemo") as archive:
        members = [member for member in archive.getmembers() if member.isfile() and ".distcp" in member.name]
        return {m.name: hashlib.sha256(archive.extractfile(m).read()).digest() for m in members}  # type: ignore[union-attr]


def _status(job: Job) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-m", "nemo_minordpo", "status", str(job.run)], capture_output=True, text=True, check=False
    )
    return done.stdout.splitlines()


def _end_of(line: str) -> str:
    """END of "attempt 1 (JOB, LAYOUT): from step N, END"."""
    return line.partition("): from step ")[2].partition(", ")[2]


def _seconds(time_text: str) -> float:
    return datetime.fromisoformat(time_text.replace("Z", "+00:00")).timestamp()


@contextlib.contextmanager
def prepared(folder: Path, *, num_nodes: int) -> Iterator[tuple[Cluster, Inputs]]:
    """A running cluster, a model and pairs; everything but the runs is deleted at the end."""
    from nemo_minordpo.convert.hf_to_nemo import import_hf
    from tests.tiny import write_model

    for name in ("runs", "disk"):
        (folder / name).mkdir(parents=True)
    write_model(folder / "hf", hidden_size=256, intermediate_size=768, max_position_embeddings=1024)
    import_hf(folder / "hf", folder / "base.nemo")
    write_pairs(folder / "pairs.jsonl", count=200)
    inputs = Inputs(folder / "base.nemo", folder / "pairs.jsonl", folder / "runs", folder / "disk")
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=400m", "tmpfs", str(inputs.disk)], check=True)
    cluster = Cluster(folder / "cluster", num_nodes)
    try:
        cluster.start()
        yield cluster, inputs
    finally:
        cluster.stop()
        subprocess.run(["umount", "--lazy", str(inputs.disk)], check=False)


def write_pairs(path: Path, *, count: int) -> None:
    draw = random.Random(0)
    rows = []
    for _ in range(count):
        a, b = draw.randint(1, 99), draw.randint(1, 99)
        filler = "and so on " * draw.randint(5, 25)
        rows.append(
            {
                "prompt": f"What is {a} plus {b}? {filler}\n",
                "chosen_response": f"{filler}{a} + {b} = {a + b}\nthe answer is {a + b}",
                "rejected_response": f"{filler}{a} + {b} = {a + b + 1}\nthe answer is {a + b}",
            }
        )
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--count", type=int, default=2 * len(FAULTS), help="number of jobs; faults and layouts alternate"
    )
    parser.add_argument("--fault", choices=[*FAULTS], help="only this fault")
    parser.add_argument("--resume", action="store_true", help="resume after the recorded outcomes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("docs/results/faults.json"), help="results file")
    parser.add_argument("--folder", type=Path, help="folder for runs and logs; default: temporary")
    given = parser.parse_args()
    if reason := why_not():
        raise SystemExit(reason)
    folder = given.folder or Path(tempfile.mkdtemp())
    results = given.output
    outcomes = [Outcome(**row) for row in json.loads(results.read_text())] if given.resume else []
    with prepared(folder.absolute(), num_nodes=3) as (cluster, inputs):
        whole = {layout: Job(cluster, inputs, f"whole_{layout}", layout) for layout in LAYOUTS}
        for job in whole.values():
            job.wait_for_end()
        for number in range(len(outcomes), given.count):
            kind = given.fault or list(FAULTS)[number % len(FAULTS)]
            layout = list(LAYOUTS)[number // len(FAULTS) % 2 if not given.fault else number % 2]
            try:
                outcomes.append(run_with_fault(cluster, inputs, kind, layout, whole[layout], seed=given.seed + number))
            except TimeoutError as error:
                outcomes.append(Outcome(kind, layout, 0, False, str(error).splitlines()[0], 0, nan, nan, 0, ""))
                cluster.run("scancel", "--user=root")
            print(outcomes[-1], file=sys.stderr, flush=True)
            given.output.parent.mkdir(parents=True, exist_ok=True)
            results.write_text(json.dumps([asdict(o) for o in outcomes], indent=1) + "\n")
            fill_pages()
    if given.folder is None:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
