"""The outcome of a run of checks: the table, the exit code, and one file with all output and measurements."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from nemo_minordpo.files import write_json
from tests.gpu import MEASURED
from tests.gpu.runner import Row, log_of
from tests.gpu.schedule import Check
from tests.gpu.stack import FILE as STACK_FILE

_STYLES = {"passed": "green", "FAILED": "bold red", "not run": "yellow"}
# Lines and bytes of a log's end. With about 30 failed checks and the metrics, the file has about 8 MB.
_LINES, _BYTES = 200, 20_000
_LINES_OF_FAILED, _BYTES_OF_FAILED = 2000, 150_000
_BYTES_OF_METRICS = 4_000_000


def exit_code(rows: Sequence[Row]) -> int:
    """1 if a check failed; "not run" does not count as a failure."""
    return int(any(row.result == "FAILED" for row in rows))


def table(rows: Sequence[Row], *, title: str) -> Table:
    result = Table("check", "result", "figure", title=title, title_justify="left")
    result.add_column("s", justify="right")
    for row in rows:
        words = f"{row.result}: {row.reason}" if row.reason else row.result
        result.add_row(row.name, f"[{_STYLES[row.result]}]{escape(words)}[/]", escape(row.figure), f"{row.seconds:.0f}")
    return result


def write_results(path: Path, rows: Sequence[Row], checks: Sequence[Check], folder: Path) -> None:
    """Atomically write everything known so far.

    Args:
        path: the file to write.
        rows: the rows so far, in any order.
        checks: all selected checks, in the order of the file.
        folder: the checks' folder.
    """
    by_name = {row.name: row for row in rows}
    done = [(check, row) for check in checks if (row := by_name.get(check.name))]
    found = {
        "stack": read_stack(folder),
        "rows": [{**asdict(row), "log": _end_of_log(check, row, folder)} for check, row in done],
        "to_come": [check.name for check in checks if check.name not in by_name],
        "measurements": {file.stem: json.loads(file.read_text()) for file in sorted(folder.glob(f"{MEASURED}/*.json"))},
        "metrics": dict(_metrics(folder)),
    }
    write_json(path, found)


def read_stack(folder: Path) -> dict[str, Any]:
    file = folder / STACK_FILE
    return json.loads(file.read_text()) if file.exists() else {}


def last_lines(file: Path, *, lines: int, size: int) -> list[str]:
    """The end of a text, at most this many lines and bytes, without anything that a terminal would have overwritten."""
    if not file.exists():
        return []
    with file.open("rb") as log:
        log.seek(max(file.stat().st_size - size, 0))
        text = log.read().decode(errors="replace")
    return [line.rstrip("\r").rpartition("\r")[2] for line in text.split("\n")][-lines:]


def _end_of_log(check: Check, row: Row, folder: Path) -> list[str]:
    failed = row.result == "FAILED"
    lines, size = (_LINES_OF_FAILED, _BYTES_OF_FAILED) if failed else (_LINES, _BYTES)
    return last_lines(log_of(check, folder), lines=lines, size=size)


def _metrics(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """(run folder, lines of its metrics); as strings, so that each stays on one line of the results file."""
    left = _BYTES_OF_METRICS
    for file in sorted(folder.glob("**/metrics.jsonl")):
        left -= file.stat().st_size
        if left >= 0:
            yield str(file.parent.relative_to(folder)), file.read_text().splitlines()
