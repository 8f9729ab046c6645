"""Memory of training a model of Qwen2.5-0.5B's shape with a head of its own, by what it is for: planned and measured.

    python -m tests.benchmarks.memory               # writes docs/results/memory.json and fills the pages

Weights are random, and pairs short. Two layers need about 6 GiB; --layers 24 measures the whole model in 14 GiB.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from nemo_minordpo.config import compose, load
from nemo_minordpo.core.memory import GIB, PURPOSES
from nemo_minordpo.records import StepMetrics
from nemo_minordpo.train.plan import make_plan
from tests.benchmarks.tables import fill_pages
from tests.tiny import write_model, write_pairs

LAYERS, BATCH, STEPS = 24, 16, 3
SHAPE = {
    "vocab_size": 151936, "hidden_size": 896, "intermediate_size": 4864, "num_attention_heads": 14,
    "num_key_value_heads": 2,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=2, help="layers of the measured model")
    parser.add_argument("--output", type=Path, default=Path("docs/results/memory.json"), help="results file")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_model(folder / "hf", num_hidden_layers=given.layers, **SHAPE)
        subprocess.run(_minordpo("import-hf", f"{folder}/hf", f"{folder}/base.nemo"), check=True)
        write_pairs(folder / "pairs.jsonl", count=STEPS * BATCH, seed=0)
        rows = [
            row(folder, precision, layers, measured=layers == given.layers)
            for layers in sorted({given.layers, LAYERS})
            for precision in ("fp32", "bf16")
        ]
    given.output.write_text(json.dumps(rows, indent=1) + "\n")
    fill_pages()


def row(folder: Path, precision: str, layers: int, *, measured: bool) -> dict[str, Any]:
    overrides = [
        f"pretrained_checkpoint.restore_from_path={folder}/base.nemo",
        f"model.data.data_prefix.train=[{folder}/pairs.jsonl]", f"exp_manager.explicit_log_dir={folder}/{precision}",
        f"model.global_batch_size={BATCH}", "model.dpo.ref_policy_kl_penalty=0.1", f"precision={precision}",
        "trainer.accelerator=cpu", "trainer.dpo.save_nemo=false",
    ]  # fmt: skip
    plan = make_plan(load(compose([*overrides, f"+model.num_layers={layers}"])))
    if measured:
        subprocess.run(_minordpo("train", *overrides), check=True)
        lines = (folder / precision / "metrics.jsonl").read_text().splitlines()
        peak = StepMetrics.from_json(lines[-1]).values["peak_memory_gib"]
    return {
        "layers": layers,
        "precision": precision,
        "weights": plan.memory.parameters,
        "row_length": plan.layout.row_length,
        "planned_gib": {name: getattr(plan.memory, name) / GIB for name in (*PURPOSES, "total")},
        "measured_gib": peak if measured else None,
    }


def _minordpo(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "nemo_minordpo", *arguments]


if __name__ == "__main__":
    main()
