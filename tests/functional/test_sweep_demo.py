"""The demo's road, cut short: every stage by its command, and nothing done twice."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent


def sweep(work):
    return subprocess.run(
        [
            sys.executable, "-m", "nemo_minordpo", "sweep", "demo", f"work={work}",
            "sweep.model.dpo.preference_loss=dpo,minordpo",
            "arithmetic.num_train=40", "arithmetic.num_test=6", "train.trainer.dpo.max_steps=3",
            "train.model.global_batch_size=8", "evaluate.max_new_tokens=100",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    work = tmp_path_factory.mktemp("work") / "demo"
    return work, sweep(work)


def test_from_questions_to_a_report(first):
    work, result = first
    assert result.returncode == 0, (result.stdout + result.stderr)[-3000:]
    with (work / "report/report.csv").open() as table:
        rows = {row["model"]: row for row in csv.DictReader(table)}
    assert list(rows) == ["base", "dpo", "minordpo"]
    for loss in ("dpo", "minordpo"):
        lines = [json.loads(line) for line in (work / f"runs/{loss}/metrics.jsonl").read_text().splitlines()]
        assert [line["step"] for line in lines] == [1, 2, 3]
        assert lines[0]["values"]["rewards/margin"] == 0.0
        score = json.loads((work / f"runs/{loss}/evaluation/score.json").read_text())
        assert score["num_questions"] == 6
        assert len((work / f"runs/{loss}/evaluation/predictions.jsonl").read_text().splitlines()) == 6
        assert (work / f"runs/{loss}/hf/model.safetensors").exists()
    assert (work / "report/rewards.png").stat().st_size > 10_000
    assert "rewards/chosen" in (work / "report/report.md").read_text()


def test_the_second_time_nothing_is_done_again(first):
    work, _ = first
    written = {path: path.stat().st_mtime_ns for path in work.rglob("*") if path.is_file()}
    result = sweep(work)
    assert result.returncode == 0, result.stderr
    assert "kept, it was done before" in result.stdout
    assert {path: path.stat().st_mtime_ns for path in work.rglob("*") if path.is_file()} == written
