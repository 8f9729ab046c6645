"""The runner of `make gpu-check`: what becomes of checks that pass, fail, crash, hang, or lack something."""

import io
import json
import os
import signal
import subprocess
import sys
import time

import pytest
from rich.console import Console

from tests.gpu import NotRun, bounded
from tests.gpu.__main__ import CHECKS
from tests.gpu.runner import ROOT, Check, exit_code, log_of, run_all, run_check, table, write_results

HERE = "tests.unit.test_gpu_check"


def passes(folder, *arguments):
    (folder / "passes.json").write_text("its own")
    return f"with {' and '.join(arguments)}"


def fails(folder):
    raise AssertionError("off by [2]\nand more")


def lacks(folder):
    raise NotRun("no such device")


def crashes(folder):
    os.kill(os.getpid(), signal.SIGSEGV)


def ends(folder):
    os._exit(3)


def hangs(folder):
    """With a child, that must not outlive it."""
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    (folder / "child").write_text(str(child.pid))
    time.sleep(600)


def check(name, *arguments, limit_s=60.0):
    return Check(name, f"{HERE}:{name}", arguments, limit_s)


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gpu-check")
    checks = [check("passes", "one", "two"), *map(check, ("fails", "lacks", "crashes", "ends"))]
    told = []
    rows = run_all([*checks, check("hangs", limit_s=4.0)], folder, limit_s=600, tell=told.append)
    assert told == rows
    assert (folder / "passes.json").read_text() == "its own"
    assert "AssertionError: off by [2]" in log_of(checks[1], folder).read_text()
    assert not os.path.exists(f"/proc/{(folder / 'child').read_text()}/cmdline") or _is_zombie(folder)
    return {row.name: row for row in rows}


def _is_zombie(folder):
    pid = (folder / "child").read_text()
    with open(f"/proc/{pid}/stat") as file:
        return file.read().rpartition(")")[2].split()[0] == "Z"


@pytest.mark.parametrize(
    ("name", "result", "reason", "figure"),
    [
        ("passes", "passed", "", "with one and two"),
        ("fails", "FAILED", "AssertionError: off by [2]", ""),
        ("lacks", "not run", "no such device", ""),
        ("crashes", "FAILED", "killed by SIGSEGV", ""),
        ("ends", "FAILED", "ended with exit code 3", ""),
        ("hangs", "FAILED", "not finished after 4 s", ""),
    ],
)
def test_each_end_becomes_its_row(rows, name, result, reason, figure):
    row = rows[name]
    assert (row.result, row.reason, row.figure) == (result, reason, figure)


def test_what_fails_decides_the_exit_code(rows):
    assert exit_code([rows["passes"], rows["lacks"]]) == 0
    for name in ("fails", "crashes", "ends", "hangs"):
        assert exit_code([rows["passes"], rows[name]]) == 1


def test_the_table_and_the_file_hold_every_row(rows, tmp_path):
    console = Console(record=True, width=140, file=io.StringIO())
    console.print(table(list(rows.values()), title="a machine"))
    text = console.export_text()
    for words in ("a machine", "with one and two", "FAILED: AssertionError: off by [2]", "not run: no such device"):
        assert words in text
    write_results(tmp_path / "new/check.json", list(rows.values()), {"device": None})
    written = json.loads((tmp_path / "new/check.json").read_text())
    assert [row["name"] for row in written["rows"]] == list(rows)
    assert written["stack"] == {"device": None}


@pytest.mark.parametrize(("left_s", "reason"), [(0.0, "no time left"), (2.0, "no time left to finish")])
def test_without_time_a_check_is_not_run(tmp_path, left_s, reason):
    row = run_check(check("hangs"), tmp_path, left_s=left_s)
    assert (row.result, row.reason) == ("not run", reason)


def test_a_bound_is_kept_or_not_and_nan_is_above_any():
    assert bounded("error", 1e-3, 1e-3) == "error 1.0e-03 (bound 1.0e-03)"
    for error in (2e-3, float("nan")):
        with pytest.raises(AssertionError, match="bound"):
            bounded("error", error, 1e-3)


def test_every_check_of_the_list_is_there():
    assert len({check.name for check in CHECKS}) == len(CHECKS) >= 20
    for item in CHECKS:
        module, _, name = item.target.partition(":")
        source = (ROOT / f"{module.replace('.', '/')}.py").read_text()
        assert f"\ndef {name}(folder: Path" in source, item.target
