"""Benchmarks: whole optimizer steps of other trainers and of ours, on the same pairs, one process each.

Shared by the workers, which run in different environments; uses only the standard library.

A worker is started as ``python -m tests.benchmarks.NAME SETTINGS.json`` from the root of the repository. It loads its
model, prints a line ``{"ready": true, ...}`` and waits. For every line ``step`` that it reads, it does one whole
optimizer step on the first pairs of the file and prints ``{"seconds": ..., "cpu_seconds": ..., "pairs": ...,
"loss": ..., "rss_peak_gib": ...}``; it ends at ``quit``, at the end of its input, or after `steps` steps.
`cpu_seconds` is the CPU time of all threads: close to seconds x threads, unless other processes use the CPUs too.
"""

import json
import os
import sys
import time
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TextIO

_PAIR_KEYS = ("prompt", "chosen_response", "rejected_response")


@dataclass(frozen=True)
class Settings:
    """A worker's settings."""

    hf: str  # folder of the model
    nemo: str  # .nemo of the same weights
    pairs: str  # jsonl with the exact texts; every step has the first ones
    global_batch_size: int  # pairs
    micro_batch_size: int  # pairs
    seq_length: int  # tokens, no pair is longer
    beta: float
    lr: float
    tensor_parallel: int
    threads: int  # per process
    steps: int  # at most
    torch_products: bool = False  # without the matrix products of host/matmul.py; ours only
    precision: str = "fp32"  # or bf16; ours and TRL
    work: str | None = None  # empty folder for a worker's files

    @classmethod
    def from_arguments(cls) -> "Settings":
        """Read the file that the command line names; settings for other workers are ignored."""
        given = json.loads(Path(sys.argv[1]).read_text())
        return cls(**{field.name: given[field.name] for field in fields(cls) if field.name in given})

    def read_pairs(self) -> list[dict[str, str]]:
        """The texts of all steps, without other fields: the same pairs in every step, so that steps are comparable.

        Raises:
            ValueError: the file has fewer pairs than a step needs.
        """
        needed = self.global_batch_size
        with open(self.pairs, encoding="utf-8") as file:
            rows = [json.loads(line) for _, line in zip(range(needed), file, strict=False)]
        if len(rows) < needed:
            raise ValueError(f"{self.pairs} has {len(rows)} pairs, but a step needs {needed}")
        return [{key: row[key] for key in _PAIR_KEYS} for row in rows] * self.steps


class Conversation:
    """A worker's end of the protocol; anything else printed to stdout goes to stderr."""

    def __init__(self, *, pairs: int, silent: bool = False) -> None:
        """`pairs`: number per step; a `silent` rank takes part but prints nothing."""
        self._pairs = pairs
        self._silent = silent
        self._answers: TextIO = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)
        self._start = self._cpu_start = 0.0

    def ready(self, **more: Any) -> None:
        self._say(ready=True, rss_peak_gib=peak_rss_gib(), **more)

    def wait_for_step(self) -> bool:
        """Wait until the next step is requested and start its clock; False = no more steps."""
        asked = sys.stdin.readline().strip() == "step"
        self._start, self._cpu_start = time.perf_counter(), time.process_time()
        return asked

    def step_done(self, *, loss: float, **more: float) -> None:
        seconds, cpu_seconds = time.perf_counter() - self._start, time.process_time() - self._cpu_start
        own = {"seconds": seconds, "cpu_seconds": cpu_seconds, "pairs": self._pairs, "rss_peak_gib": peak_rss_gib()}
        self._say(**{**more, **own, "loss": loss})

    def _say(self, **values: Any) -> None:
        if not self._silent:
            print(json.dumps(values), file=self._answers, flush=True)


def be_the_only_rank() -> None:
    """Set the variables that torchrun would set for a single process."""
    os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1", "GROUP_RANK": "0"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500", "TORCHELASTIC_RUN_ID": "benchmark"}


def peak_rss_gib() -> float:
    """Peak memory of this process so far. Not `ru_maxrss`, which starts at the parent's size."""
    lines = Path("/proc/self/status").read_text().splitlines()
    kib = next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
    return kib / 2**20


def keep_torch_matmul() -> None:
    """Call before host.prepare(): matrix products stay torch's own."""
    from nemo_minordpo.host import matmul

    matmul.install = list


def keep_torch() -> None:
    """Call before host.prepare(): matrix products and memory stay torch's own, as in other trainers."""
    from nemo_minordpo.host import heap

    keep_torch_matmul()
    heap.keep_freed_memory = lambda: None
