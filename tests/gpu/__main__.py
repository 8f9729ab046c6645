"""Check this machine's stack, on a GPU or on what there is, and print one table.

    python -m tests.gpu [--output runs/gpu-check.json] [--only NAME] [--minutes 8]

Exit code 1 when a check failed. What could not be checked is "not run" with its reason, and never "passed".
"""

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console

from tests.gpu.runner import Check, Row, exit_code, log_of, run_all, table, write_results

_NUMERICS, _TRAINING, _SPEED = "tests.gpu.numerics", "tests.gpu.training", "tests.gpu.speed"
CHECKS = (
    Check("stack", "tests.gpu.stack:stack"),
    Check("losses and gradients", f"{_NUMERICS}:losses", limit_s=60),
    Check("log-probabilities, float32", f"{_NUMERICS}:log_probs", ("float32",), limit_s=60),
    Check("log-probabilities, bfloat16", f"{_NUMERICS}:log_probs", ("bfloat16",), limit_s=60),
    Check("attention of pairs, float32", f"{_NUMERICS}:attention", ("float32",), limit_s=90),
    Check("attention of pairs, bfloat16", f"{_NUMERICS}:attention", ("bfloat16",), limit_s=90),
    Check("attention: no recompilation", f"{_NUMERICS}:recompilation", limit_s=120),
    Check("import, verify, export", f"{_TRAINING}:conversion"),
    Check("model, local layers, fp32", f"{_TRAINING}:log_probs_of_local_layers"),
    Check("model, Transformer Engine, fp32", f"{_TRAINING}:log_probs", ("fp32",)),
    Check("model, bf16", f"{_TRAINING}:log_probs", ("bf16",)),
    Check("model, FP8", f"{_TRAINING}:log_probs", ("fp8_hybrid",)),
    Check("packed against separate", f"{_TRAINING}:packed"),
    Check("cached against live reference, fp32", f"{_TRAINING}:cached_reference", ("fp32",)),
    Check("cached against live reference, bf16", f"{_TRAINING}:cached_reference", ("bf16",)),
    Check("cached against live reference, FP8", f"{_TRAINING}:cached_reference", ("fp8_hybrid",)),
    Check("stopped and resumed, fp32", f"{_TRAINING}:resume", ("fp32",)),
    Check("stopped and resumed, FP8", f"{_TRAINING}:resume", ("fp8_hybrid",)),
    Check("20 steps, fp32 against CPU", f"{_TRAINING}:twenty_steps", ("fp32",)),
    Check("20 steps, bf16 against CPU", f"{_TRAINING}:twenty_steps", ("bf16",)),
    Check("20 steps, FP8 against CPU", f"{_TRAINING}:twenty_steps", ("fp8_hybrid",)),
    Check("head: time and memory", f"{_SPEED}:head", limit_s=60),
    Check("step, 1.5B, bf16", f"{_SPEED}:step", ("bf16",)),
    Check("step, 1.5B, FP8", f"{_SPEED}:step", ("fp8_hybrid",)),
    Check("FP8 against bf16", f"{_SPEED}:fp8_over_bf16"),
    Check("ours against NeMo-Aligner's step", f"{_SPEED}:beside_aligner"),
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/gpu-check.json"), help="file of results")
    parser.add_argument("--only", default="", help="part of the names of the checks to run")
    parser.add_argument("--minutes", type=float, default=8.0, help="what is left then is not run")
    given = parser.parse_args()
    console, progress = Console(), Console(stderr=True)
    checks = [check for check in CHECKS if given.only in check.name]
    folder = Path(tempfile.mkdtemp(prefix="gpu-check-"))

    def tell(row: Row) -> None:
        progress.print(f"{len(rows) + 1}/{len(checks)} {row.name}: {row.result}", highlight=False)
        rows.append(row)

    rows: list[Row] = []
    run_all(checks, folder, limit_s=given.minutes * 60, tell=tell)
    stack = _stack(folder)
    console.print(table(rows, title=_title(stack)))
    write_results(given.output, rows, stack)
    for check, row in zip(checks, rows, strict=True):
        if row.result == "FAILED":
            lines = log_of(check, folder).read_text(errors="replace").splitlines()[-15:]
            console.print(f"{check.name}: the end of what it said", *lines, sep="\n  ", markup=False, highlight=False)
    console.print(f"kept in {given.output}", highlight=False)
    if exit_code(rows):
        console.print(f"all that the checks said is in {folder}", highlight=False)
    else:
        shutil.rmtree(folder)
    return exit_code(rows)


def _stack(folder: Path) -> dict[str, Any]:
    from tests.gpu.stack import FILE

    file = folder / FILE
    return json.loads(file.read_text()) if file.exists() else {}


def _title(stack: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in stack.get("versions", {}).items())
    cuda = f" with CUDA {stack['cuda']}" if stack.get("cuda") else ""
    return f"{stack.get('device') or 'no CUDA device'}{cuda}: Python {stack.get('python', 'unknown')}, {versions}"


if __name__ == "__main__":
    sys.exit(main())
