"""How fast `minordpo evaluate` answers, against whole batches of transformers' `generate`, and against the machine.

    python -m tests.benchmarks.answers hf/base gsm8k/test.jsonl    # writes docs/results/answers.json, fills the pages

Two measurements in float32, and in bfloat16 where the processor has instructions for it; every one in its own process,
in turns:

- Answers to the first 40 questions, at most 256 tokens each. "whole batches" is how `evaluate` answered before: batches
  of 16, padded on the left, each as long as its longest answer, torch's matrix products, threads that spin.
- Milliseconds per token step of 16 answers, alone and beside another process that multiplies matrices on all cores,
  with threads that spin while they wait, OpenMP's default, and threads that spin for microseconds and then sleep.

The limit is the larger of two times: to read the weights once per step from memory, and to do the matrix products of
every token, both at the rates that the process itself measures first.
"""

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tests.benchmarks import peak_rss_gib
from tests.benchmarks.machine import product_rate, seconds_of
from tests.benchmarks.tables import fill_pages

BEFORE, NOW = "whole batches", "continuous"
QUESTIONS, NEW_TOKENS, BATCH_BEFORE, STEPS = 40, 256, 16, 15
SPIN, BRIEFLY = "spin", "briefly"
_OTHER = "import torch\na = torch.randn(700, 700)\nwhile True: a @ a"


def measure(kind: str, dtype: str, model: Path, questions: Path) -> None:
    """One measurement, named by `kind`; prints a line of JSON."""
    if kind in (NOW, BRIEFLY):
        from nemo_minordpo.host.waiting import wait_briefly

        wait_briefly()
    import torch
    from transformers import AutoModelForCausalLM

    from nemo_minordpo.evaluate import generate
    from nemo_minordpo.evaluate.asking import Asking
    from nemo_minordpo.evaluate.engine import Limits, Request
    from nemo_minordpo.evaluate.run import read_problems
    from nemo_minordpo.evaluate.sampling import Sampling

    machine = {"gb_per_s": memory_rate() / 1e9, "gflops": product_rate(getattr(torch, dtype)) / 1e9}
    if kind == BEFORE:
        generate.pack_linear_layers = lambda model, *, rows: None
        generate.why_whole_batches = lambda model, *, length: "the benchmark"
    engine = generate.load_transformers(model, dtype=dtype, device="cpu")
    limit = QUESTIONS if kind in (BEFORE, NOW) else BATCH_BEFORE
    prompts = Asking().prompts(engine.text.tokenizer, interrupted_date=None)
    encoded = [engine.text.encode(prompts.text(one.question)) for one in read_problems(questions, limit=limit)]
    requests = [Request(index=index, sample=0, prompt=prompt) for index, prompt in enumerate(encoded)]
    requests.sort(key=lambda request: len(request.prompt), reverse=True)
    limits = Limits(batch_size=None if kind == NOW else BATCH_BEFORE, max_new_tokens=NEW_TOKENS)
    times: list[float] = []
    started, answers = time.perf_counter(), {}

    def tick(_: int) -> None:
        times.append(time.perf_counter())
        if kind in (SPIN, BRIEFLY) and len(times) > STEPS:
            raise StopIteration

    try:
        for request, one in engine.answers(requests, limits=limits, sampling=Sampling(), on_tokens=tick):
            answers[request.index] = one.token_ids
    except (StopIteration, RuntimeError):  # StopIteration, which a generator may not let pass
        steps = [1000 * (end - start) for start, end in itertools.pairwise(times)]
        print(json.dumps({"step_ms": statistics.median(steps)}), flush=True)
        return
    seconds = time.perf_counter() - started
    with torch.device("meta"):
        layers = AutoModelForCausalLM.from_config(engine.model.config).modules()
    size = sum(layer.weight.numel() for layer in layers if isinstance(layer, torch.nn.Linear))
    read = sum(map(len, encoded)) + sum(map(len, answers.values()))
    bytes_read = len(times) * size * engine.model.dtype.itemsize
    limit_s = max(bytes_read / machine["gb_per_s"] / 1e9, 2 * size * read / machine["gflops"] / 1e9)
    print(
        json.dumps(
            {
                "seconds": seconds, "tokens": sum(map(len, answers.values())), "limit_s": limit_s, **machine,
                "rss_peak_gib": peak_rss_gib(), "answers": [answers[index] for index in sorted(answers)],
            }
        ),
        flush=True,
    )  # fmt: skip


def memory_rate() -> float:
    """Bytes per second that all threads together read from memory: the best of five sums over 1 GiB."""
    import torch

    values = torch.ones(1 << 28)
    return values.nbytes / min(seconds_of(values.sum) for _ in range(5))


def run(kind: str, dtype: str, model: Path, questions: Path) -> dict[str, Any]:
    load = os.getloadavg()[0]
    command = [sys.executable, "-m", "tests.benchmarks.answers", str(model), str(questions), "--one", kind, dtype]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True)
    row = {"kind": kind, "dtype": dtype, "load_before": load, **json.loads(done.stdout.strip().splitlines()[-1])}
    print({name: value for name, value in row.items() if name != "answers"}, file=sys.stderr, flush=True)
    return row


def dtypes() -> list[str]:
    """float32, and bfloat16 where the processor has instructions for it: elsewhere it is emulated."""
    from nemo_minordpo.host.processor import bfloat16_instructions  # imports torch, which a measurement must not yet

    return ["float32", *(["bfloat16"] if bfloat16_instructions() else [])]


def beside(model: Path, questions: Path, *, rounds: int) -> list[dict[str, Any]]:
    """Milliseconds per token step with both ways of waiting, alone and beside another process, in turns."""
    found: dict[tuple[str, bool], list[float]] = {}
    for _ in range(rounds):
        for busy in (False, True):
            other = subprocess.Popen([sys.executable, "-c", _OTHER]) if busy else None
            try:
                for kind in (SPIN, BRIEFLY):
                    found.setdefault((kind, busy), []).append(run(kind, "float32", model, questions)["step_ms"])
            finally:
                if other is not None:
                    other.kill()
                    other.wait()
    return [{"waiting": kind, "beside_another": busy, "step_ms": values} for (kind, busy), values in found.items()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="Hugging Face folder")
    parser.add_argument("questions", type=Path, help="GSM8K's test.jsonl")
    parser.add_argument("--output", type=Path, default=Path("docs/results/answers.json"), help="results file")
    parser.add_argument("--rounds", type=int, default=3, help="measurements of each kind")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        kind, dtype = given.one
        measure(kind, dtype, given.model, given.questions)
        return
    rows = [
        run(kind, dtype, given.model, given.questions)
        for _ in range(given.rounds)
        for dtype in dtypes()
        for kind in (NOW, BEFORE)
    ]
    reference = next(row["answers"] for row in rows if row["kind"] == BEFORE and row["dtype"] == "float32")
    for row in rows:
        row["same_answers"] = sum(ours == theirs for ours, theirs in zip(row.pop("answers"), reference, strict=True))
    waiting = beside(given.model, given.questions, rounds=given.rounds)
    from nemo_minordpo.host.processor import processor_name  # imports torch, as above

    result = {"processor": processor_name(), "questions": QUESTIONS, "runs": rows, "waiting": waiting}
    given.output.write_text(json.dumps(result, indent=1) + "\n")
    fill_pages()


if __name__ == "__main__":
    main()
