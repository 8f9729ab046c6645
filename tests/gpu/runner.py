"""Runs checks in processes of their own: one that crashes, hangs or loses its GPU takes no other one with it."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from nemo_minordpo.records import write_json

ROOT = Path(__file__).parent.parent.parent
_STYLES = {"passed": "green", "FAILED": "bold red", "not run": "yellow"}


@dataclass(frozen=True)
class Check:
    """A row of the table.

    target: MODULE:FUNCTION, called with the shared folder and the arguments.
    limit_s: seconds after which it has failed.
    """

    name: str
    target: str
    arguments: tuple[str, ...] = ()
    limit_s: float = 180.0


@dataclass(frozen=True)
class Row:
    """What became of a check: `passed`, `FAILED` or `not run`; the last two with a reason."""

    name: str
    result: str
    reason: str
    figure: str
    seconds: float


def run_check(check: Check, folder: Path, *, left_s: float) -> Row:
    """Run one check, with its output in a log of its own in the folder.

    Args:
        check: which one.
        folder: shared by all checks.
        left_s: seconds that are left for all checks.
    """
    if left_s <= 0:
        return Row(check.name, "not run", "no time left", "", 0.0)
    answer = folder / f"{_file_name(check)}.answer"  # not what a check of this name may write
    answer.unlink(missing_ok=True)
    started = time.monotonic()
    with log_of(check, folder).open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.gpu.one", check.target, str(folder), str(answer), *check.arguments],
            cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        try:
            code = process.wait(timeout=min(check.limit_s, left_s))
        except subprocess.TimeoutExpired:
            code = None
        finally:
            # whatever it started ends with it
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return _row(check, code, answer, seconds=time.monotonic() - started, out_of_time=left_s < check.limit_s)


def _row(check: Check, code: int | None, answer: Path, *, seconds: float, out_of_time: bool) -> Row:
    if code == 0 and answer.exists():
        said: dict[str, str] = json.loads(answer.read_text())
        return Row(check.name, said["result"], said.get("reason", ""), said.get("figure", ""), seconds)
    if code is None and out_of_time:
        return Row(check.name, "not run", "no time left to finish", "", seconds)
    if code is None:
        reason = f"not finished after {check.limit_s:g} s"
    elif code < 0:
        reason = f"killed by {signal.Signals(-code).name}"
    else:
        reason = f"ended with exit code {code}"
    return Row(check.name, "FAILED", reason, "", seconds)


def run_all(checks: Iterable[Check], folder: Path, *, limit_s: float, tell: Any = None) -> list[Row]:
    """Run checks one after another; those for which no time is left are not run.

    Args:
        checks: in their order.
        folder: existing; for what they share.
        limit_s: seconds for all of them.
        tell: called with each row as it comes.
    """
    end = time.monotonic() + limit_s
    rows = []
    for check in checks:
        rows.append(run_check(check, folder, left_s=end - time.monotonic()))
        if tell is not None:
            tell(rows[-1])
    return rows


def exit_code(rows: list[Row]) -> int:
    """1 when something failed; what was not run is no failure."""
    return int(any(row.result == "FAILED" for row in rows))


def table(rows: list[Row], *, title: str) -> Table:
    result = Table("check", "result", "figure", title=title, title_justify="left")
    result.add_column("s", justify="right")
    for row in rows:
        words = f"{row.result}: {row.reason}" if row.reason else row.result
        result.add_row(row.name, f"[{_STYLES[row.result]}]{escape(words)}[/]", escape(row.figure), f"{row.seconds:.0f}")
    return result


def write_results(path: Path, rows: list[Row], stack: dict[str, Any]) -> None:
    write_json(path, {"stack": stack, "rows": [asdict(row) for row in rows]})


def log_of(check: Check, folder: Path) -> Path:
    return folder / f"{_file_name(check)}.log"


def _file_name(check: Check) -> str:
    return re.sub(r"\W+", "_", check.name)
