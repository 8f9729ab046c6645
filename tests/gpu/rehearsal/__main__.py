"""Run gpu-check's comparisons on the emulated GPU, for every way to train: `python -m tests.gpu.rehearsal`.

    make gpu-rehearsal                                # in an environment like that of a bare GPU machine
    python -m tests.gpu.rehearsal --only resumed      # only some checks, with this Python's stack

FP8 needs the real Python layers of Transformer Engine; without it those rows are "not run". The exit code is 1 if a
check failed. On two cores everything takes about 20 minutes.
"""

import argparse
import os
import sys
from pathlib import Path

from tests.gpu.__main__ import run
from tests.gpu.rehearsal import ACTIVE
from tests.gpu.schedule import Check, Phase, selected, training

_NUMERICS = "tests.gpu.numerics"
_PRECISIONS = {"fp32": "fp32", "bf16": "bf16", "fp8_hybrid": "FP8"}
_WAYS = {
    "plain": "", "rows": ", several rows each", "recomputed": ", recomputed", "selective": ", selectively recomputed",
    "fusions": ", fusions", "adamw": ", torch's AdamW", "lora": ", LoRA",
}  # fmt: skip
# Float32 weights have nothing to fuse and no main weights.
_WITHOUT = {("fp32", "fusions"), ("fp32", "adamw")}


def _each(title: str, function: str, ways: list[str]) -> list[Check]:
    return [
        training(f"{title}, {name}{_WAYS[way]}", function, precision, way)
        for way in ways
        for precision, name in _PRECISIONS.items()
        if (precision, way) not in _WITHOUT
    ]


PHASES = (
    Phase(
        "preparation", ((Check("stack", "tests.gpu.stack:stack"), training("import, verify, export", "conversion")),)
    ),
    Phase(
        "on the emulated GPU",
        (
            (
                *(
                    Check(f"attention of pairs, {name}", f"{_NUMERICS}:attention", (name,))
                    for name in ("float32", "bfloat16")
                ),
                Check("attention of long pairs, bfloat16", f"{_NUMERICS}:attention", ("bfloat16", "long")),
                Check("attention of pairs, large scores", f"{_NUMERICS}:large_scores"),
                *(
                    Check(f"log-probabilities, {name}", f"{_NUMERICS}:log_probs", (name,))
                    for name in ("float32", "bfloat16")
                ),
                training("model, local layers, fp32", "log_probs_of_local_layers"),
                *(training(f"model, {name}", "log_probs", precision) for precision, name in _PRECISIONS.items()),
                training("packed against separate", "packed"),
                *(
                    training(f"cached against live reference, {name}", "cached_reference", precision)
                    for precision, name in _PRECISIONS.items()
                ),
                *(training(f"validation, {name}", "validation", precision) for precision, name in _PRECISIONS.items()),
                *(
                    training(f"large biases, {name}", "large_biases", precision)
                    for precision, name in _PRECISIONS.items()
                ),
                *_each("stopped and resumed", "resume", ["plain", "adamw", "lora"]),
                *_each("20 steps against CPU", "twenty_steps", list(_WAYS)),
            ),
        ),
    ),
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/gpu-rehearsal.json"), help="results file")
    parser.add_argument("--only", nargs="+", default=[""], help="run only checks with one of these in their names")
    given = parser.parse_args()
    os.environ[ACTIVE] = "1"
    path = [str(Path(__file__).parent / "path"), *filter(None, [os.environ.get("PYTHONPATH")])]
    os.environ["PYTHONPATH"] = os.pathsep.join(path)
    return run(
        selected(PHASES, lambda check: any(part in check.name for part in given.only)),
        limit_s=5400.0,
        output=given.output,
    )


if __name__ == "__main__":
    sys.exit(main())
