"""Compile FlexAttention and the head's kernels for an H100, without one, and print one table.

    python -m tests.gpu.sm90 [--only D=64] [--output runs/sm90.json]

Needs torch for CUDA with its Triton, and a C compiler. Exit code 1: an error, more graphs than the code states, spilled
registers, too much shared memory, or a control that shows no fault.
"""

import argparse
import importlib.util
import json
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.gpu.sm90 import graphs
from tests.gpu.sm90.cases import Case, all_cases
from tests.gpu.sm90.kernels import Kernel

_NEEDED = {
    "Triton": lambda: importlib.util.find_spec("triton") is not None,
    "C compiler": lambda: shutil.which("cc") is not None,
}


@dataclass(frozen=True)
class Row:
    case: str
    graphs: int
    kernels: list[Kernel]
    faults: list[str]
    failed: bool
    seconds: float


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="compile only cases with this in their names")
    parser.add_argument("--output", type=Path, help="file for the table and details of each kernel")
    given = parser.parse_args()
    if missing := [what for what, there in _NEEDED.items() if not there()]:
        print(f"not run: no {' and no '.join(missing)} here")
        return 0
    graphs.prepare()
    rows = []
    print(f"{'case':<44}{'graphs':>7}{'kernels':>8}{'registers':>10}{'shared':>8}{'local':>6}{'s':>6}  result")
    for case in all_cases():
        if given.only in case.name:
            rows.append(_compiled(case))
            print(_line(rows[-1]), flush=True)
    failed = [row.case for row in rows if row.failed]
    print(f"{len(rows)} cases, {len(failed)} failed, {sum(row.seconds for row in rows):.0f} s")
    if given.output:
        given.output.parent.mkdir(parents=True, exist_ok=True)
        given.output.write_text(json.dumps([_record(row) for row in rows], indent=1) + "\n")
    return 1 if failed or not rows else 0


def _compiled(case: Case) -> Row:
    started = time.monotonic()
    with graphs.counted() as found:
        try:
            case.run()
        except Exception as error:  # any error belongs in the table
            found["error"] = f"{type(error).__name__}: {str(error).strip()[:300]}"
    faults = [fault for kernel in found["kernels"] for fault in kernel.faults()]
    if "error" in found:
        faults.append(found["error"])
    if found["graphs"] > case.max_graphs:
        faults.append(f"{found['graphs']} graphs, at most {case.max_graphs} expected")
    expected = bool(faults) if case.fault is None else not any(case.fault in fault for fault in faults)
    return Row(case.name, found["graphs"], found["kernels"], faults, expected, time.monotonic() - started)


def _line(row: Row) -> str:
    most = [
        max((getattr(kernel, name) for kernel in row.kernels), default=0) for name in ("registers", "shared", "local")
    ]
    result = "FAILED" if row.failed else "passed"
    first = f": {row.faults[0].splitlines()[0][:160]}" if row.faults else ""
    return (
        f"{row.case:<44}{row.graphs:>7}{len(row.kernels):>8}{most[0]:>10}{most[1]:>8}{most[2]:>6}{row.seconds:>6.0f}"
        f"  {result}{first}"
    )


def _record(row: Row) -> dict[str, Any]:
    kernels = [{name: value for name, value in vars(kernel).items() if name != "source"} for kernel in row.kernels]
    return {**vars(row), "kernels": kernels}


if __name__ == "__main__":
    sys.exit(main())
