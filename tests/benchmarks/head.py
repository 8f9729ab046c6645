"""The loss head alone: time and peak memory of ours and of NeMo-Aligner's DistributedLogprob.

    python -m tests.benchmarks.head               # writes docs/results/head.json and fills the pages

A sequence of S = 4096 positions, half of them prompt, a vocabulary of V = 152,064 rows (Qwen's), hidden size 1024,
float32, forward and backward to hidden states and weight; on one rank with all cores, and on two with half of them
each. Aligner's head does what its DPO model does: logits of every position, then DistributedLogprob. Ours gets the
positions that predict a response. Each measurement runs in its own process; peak memory is what the process needed
beyond its inputs, including the gradients of hidden states and weight (0.6 GB at TP=1).
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tests.benchmarks import keep_torch, keep_torch_matmul, peak_rss_gib
from tests.benchmarks.tables import fill_pages

PLACES, PROMPT, VOCAB, HIDDEN = 4096, 2048, 152_064, 1024
NAMES = ("ours", "ours, torch's matmul", "nemo-aligner 0.7.0")


def measure(name: str, folder: str, rank: int, ranks: int) -> None:
    """One rank of one measurement; prints a line of JSON."""
    from nemo_minordpo import host

    if name == NAMES[1]:
        keep_torch_matmul()
    if name == NAMES[2]:
        keep_torch()
    host.prepare()
    import torch
    from megatron.core import parallel_state

    from nemo_minordpo.core.logprobs import group_or_none, vocab_parallel_log_probs

    torch.set_num_threads(max(len(os.sched_getaffinity(0)) // ranks, 1))
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=ranks)
    parallel_state.initialize_model_parallel(tensor_model_parallel_size=ranks)
    group: Any = parallel_state.get_tensor_model_parallel_group()
    torch.manual_seed(0)
    hidden = torch.randn(PLACES, HIDDEN, requires_grad=True)
    torch.manual_seed(1 + rank)
    weight = torch.nn.Parameter(torch.randn(VOCAB // ranks, HIDDEN) * 0.02)
    targets = torch.arange(PLACES) * 37 % VOCAB

    def ours() -> torch.Tensor:
        return vocab_parallel_log_probs(hidden[PROMPT:], weight, targets[PROMPT:], group=group_or_none(group))

    def aligner() -> torch.Tensor:
        from nemo_aligner.utils.distributed import from_parallel_logits_to_logprobs

        logits = torch.nn.functional.linear(hidden, weight)[None]
        values = from_parallel_logits_to_logprobs(
            vocab_parallel_logits=logits, target=targets[None], higher_stability=True, ignore_last=False
        )
        return values[0, PROMPT - 1 : -1]

    forward = aligner if name == NAMES[2] else ours
    torch.mm(torch.ones(64, 64), torch.ones(64, 64))
    before, seconds = current_rss_gib(), []
    for _ in range(2):  # the first warms up
        hidden.grad = weight.grad = None
        torch.distributed.barrier()
        started = time.perf_counter()
        values = forward()
        values.sum().backward()
        torch.distributed.barrier()
        seconds.append(time.perf_counter() - started)
    peak = torch.tensor(peak_rss_gib() - before, dtype=torch.float64)
    torch.distributed.all_reduce(peak)
    if rank == 0:
        print(json.dumps({"seconds": seconds[-1], "peak_gib": peak.item()}), flush=True)
    torch.distributed.destroy_process_group()


def current_rss_gib() -> float:
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("VmRSS:"))
    return int(line.split()[1]) / 2**20


def run(name: str, ranks: int) -> dict[str, float]:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        processes = [
            subprocess.Popen(
                [sys.executable, "-m", "tests.benchmarks.head", "--one", name, folder, str(rank), str(ranks)],
                stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
            )
            for rank in range(ranks)
        ]  # fmt: skip
        answers = [process.communicate()[0] for process in processes]
    return json.loads(answers[0].strip().splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("docs/results/head.json"), help="results file")
    parser.add_argument("--rounds", type=int, default=3, help="measurements per head")
    parser.add_argument("--one", nargs=4, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        name, folder, rank, ranks = given.one
        measure(name, folder, int(rank), int(ranks))
        return
    rows = []
    for ranks in (1, 2):
        found: dict[str, list[dict[str, float]]] = {name: [] for name in NAMES}
        for _ in range(given.rounds):
            for name in NAMES:
                found[name].append(run(name, ranks))
                print(ranks, name, found[name][-1], file=sys.stderr)
        for name, values in found.items():
            seconds = [value["seconds"] for value in values]
            rows.append(
                {
                    "ranks": ranks, "head": name, "seconds": statistics.median(seconds), "fastest": min(seconds),
                    "slowest": max(seconds), "peak_gib": statistics.median(value["peak_gib"] for value in values),
                }
            )  # fmt: skip
    given.output.write_text(json.dumps(rows, indent=1) + "\n")
    fill_pages()


if __name__ == "__main__":
    main()
