"""Check this machine's stack, with or without a GPU, and print one table.

    python -m tests.gpu [--output runs/gpu-check.json] [--only NAME] [--minutes 8] [--list]

Comparisons run in parallel if there are enough cores; measurements run last, one at a time. On an H200 with 16 cores
everything takes just under 8 minutes. The results file is rewritten after each check and contains the end of each
check's output. The exit code is 1 if a check failed or the run was interrupted. A check that could not run is reported
as "not run" with the reason, never as "passed".
"""

import argparse
import shutil
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from tests.gpu.results import exit_code, last_lines, read_stack, table, write_results
from tests.gpu.runner import Row, Session, log_of
from tests.gpu.schedule import PHASES, Check, Phase, checks_of, in_words, selected


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/gpu-check.json"), help="results file")
    parser.add_argument("--only", default="", help="run only checks with this in their names")
    parser.add_argument("--minutes", type=float, default=8.0, help="time limit; later checks are not run")
    parser.add_argument("--list", action="store_true", help="list the checks with their time limits and exit")
    given = parser.parse_args()
    phases = selected(PHASES, lambda check: given.only in check.name)
    if given.list:
        print(*in_words(phases), sep="\n")
        return 0
    return run(phases, limit_s=given.minutes * 60, output=given.output)


def run(phases: Sequence[Phase], *, limit_s: float, output: Path) -> int:
    """Run the checks and print their table; return the exit code."""
    console = Console()
    folder, checks, come = Path(tempfile.mkdtemp(prefix="gpu-check-")), checks_of(phases), []

    def on_row(row: Row) -> None:
        come.append(row)
        write_results(output, come, checks, folder)
        words = f"{row.result}, {row.reason}" if row.reason else f"{row.result}, {row.figure}"
        line = f"{row.ended_s:4.0f} s  {len(come)}/{len(checks)}  {row.name}, {row.seconds:.0f} s: {words}"
        print(line, file=sys.stderr, flush=True)

    session = Session(folder, limit_s, on_row=on_row)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: session.stop.set())
    rows = session.run(phases)
    console.print(table(rows, title=_title(read_stack(folder))))
    _explain_failures(console, rows, checks, folder)
    console.print(f"results: {output}", highlight=False)
    if session.stop.is_set() or exit_code(rows):
        console.print(f"full output of the checks: {folder}", highlight=False)
        return 1
    shutil.rmtree(folder)
    return 0


def _explain_failures(console: Console, rows: Sequence[Row], checks: Sequence[Check], folder: Path) -> None:
    for check, row in zip(checks, rows, strict=True):
        if row.result == "FAILED":
            lines = last_lines(log_of(check, folder), lines=15, size=20_000)
            console.print(f"{check.name}: end of its output", *lines, sep="\n  ", markup=False, highlight=False)


def _title(stack: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in stack.get("versions", {}).items())
    cuda = f" with CUDA {stack['cuda']}" if stack.get("cuda") else ""
    return f"{stack.get('device') or 'no CUDA device'}{cuda}: Python {stack.get('python', 'unknown')}, {versions}"


if __name__ == "__main__":
    sys.exit(main())
