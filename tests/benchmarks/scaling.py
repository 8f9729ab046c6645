"""How a step's time grows with pairs per batch, shared fraction and sequence length, relative to its operations.

    python -m tests.benchmarks.scaling            # writes docs/results/scaling.json and .png and fills the pages

The 28M-parameter model of the other benchmarks at TP=1, on generated tokens: pairs of a prompt and two responses of the
same length, which share a given fraction of their tokens. Only operations that the model needs count (core/flops.py):
constant seconds per operation over a series mean that time grows as it should.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from nemo_minordpo import host
from tests.benchmarks import Settings, be_the_only_rank
from tests.benchmarks.inputs import make_inputs
from tests.benchmarks.tables import fill_pages

REPEATS = 2
# series: [(pairs, sequence length, shared fraction), ...]
SERIES = {
    "pairs per batch": [(pairs, 256, 0.6) for pairs in (2, 4, 8, 16, 32, 64)],
    "shared fraction": [(8, 512, shared) for shared in (0.25, 0.4, 0.55, 0.7, 0.85, 0.99)],
    "sequence length": [(4, length, 0.6) for length in (128, 256, 512, 1024, 2048)],
}
_PROMPT = 0.25  # fraction of a sequence


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/gsm8k"), help="folder of GSM8K's train.jsonl")
    parser.add_argument("--work", type=Path, default=Path("runs/bench"), help="folder for models and pairs")
    parser.add_argument("--output", type=Path, default=Path("docs/results/scaling.json"), help="results file")
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    inputs = make_inputs(given.data, given.work.absolute())
    be_the_only_rank()
    host.prepare()
    from tests.benchmarks.ours_worker import build_trainer

    settings = Settings(
        hf=str(inputs.hf["30M"]), nemo=str(inputs.nemo["30M"]), pairs=str(inputs.pairs["zero-shot"]),
        global_batch_size=2, micro_batch_size=1, seq_length=2048, beta=0.1, lr=1e-6, tensor_parallel=1,
        threads=len(os.sched_getaffinity(0)), steps=1,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        trainer = build_trainer(settings, Path(folder))
        rows = [{"series": series, **measure(trainer, *point)} for series, points in SERIES.items() for point in points]
    given.output.write_text(json.dumps(rows, indent=1) + "\n")
    fill_pages()
    figure(rows, given.output.with_suffix(".png"))


def measure(trainer: Any, pairs: int, length: int, shared: float) -> dict[str, Any]:
    from nemo_minordpo.train.data.dataset import PairBatches

    batches = PairBatches(
        made_up(pairs, length, shared), global_batch_size=pairs, row_capacity=4096, row_multiple=8,
        data_parallel_rank=0, data_parallel_size=1, pad_id=0,
    )  # fmt: skip
    (batch,) = batches.in_file_order()
    seconds = []
    for _ in range(REPEATS + 1):
        coming: Future[Any] = Future()
        coming.set_result(batch.with_references([None] * len(batch.micro_batches)))
        trainer._with_references = lambda step: step
        seconds.append(trainer._train_step(coming).values["step_s"])
    flops = trainer.model.size.training_flops(batch.work)
    row = {"pairs": pairs, "length": length, "shared": shared, "tflop": flops / 1e12}
    row["seconds"] = statistics.median(seconds[1:])
    print(row, file=sys.stderr)
    return row


def made_up(pairs: int, length: int, shared: float) -> Any:
    """Token arrays: 0, 1, 2, ... in the shared part, then one repeated token per response."""
    import numpy as np

    from nemo_minordpo.pairs.tokens import TokenArrays

    common = max(int(shared * length), int(_PROMPT * length))
    start = np.arange(common) % 1000
    sides = [np.concatenate([start, np.full(length - common, token)]) for token in (2000, 3000)]
    return TokenArrays(
        tokens=np.concatenate(sides * pairs).astype(np.int32),
        starts=np.arange(2 * pairs + 1) * length,
        prompt_lengths=np.full(pairs, int(_PROMPT * length), dtype=np.int32),
        shared_lengths=np.full(pairs, common, dtype=np.int32),
        reward_margins=np.ones(pairs, dtype=np.float32),
    )


def figure(rows: list[dict[str, Any]], path: Path) -> None:
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    drawing, axes = plt.subplots(figsize=(5, 3.6), layout="constrained")
    for series in SERIES:
        points = [(row["tflop"], row["seconds"]) for row in rows if row["series"] == series]
        axes.plot(*zip(*points, strict=True), "o-", label=series)
    axes.set(xscale="log", yscale="log", xlabel="TFLOP that the model needs", ylabel="seconds per step")
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    drawing.savefig(path, dpi=150)
    plt.close(drawing)


if __name__ == "__main__":
    main()
