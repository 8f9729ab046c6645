"""The demo's pipeline, shortened: every stage runs through its command, and nothing is done twice."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent


STEPS = 8


def command(work):
    return [
        sys.executable, "-m", "nemo_minordpo", "sweep", "demo", f"work={work}",
        "sweep.model.dpo.preference_loss=dpo,minordpo",
        "arithmetic.num_train=64", "arithmetic.num_test=6", f"train.trainer.dpo.max_steps={STEPS}",
        "train.trainer.dpo.save_interval=1", "train.model.global_batch_size=8", "evaluate.max_new_tokens=100",
    ]  # fmt: skip


def sweep(work):
    return subprocess.run(command(work), cwd=ROOT, capture_output=True, text=True, timeout=900, check=False)


def kill_while_it_trains(work):
    """Kill the sweep and everything it started, as soon as the first run has a checkpoint."""
    running = subprocess.Popen(
        command(work), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        end = time.monotonic() + 400
        while not list(work.glob("runs/dpo/checkpoints/step_*")):
            assert running.poll() is None
            assert time.monotonic() < end
            time.sleep(0.05)
    finally:
        os.killpg(running.pid, signal.SIGKILL)
        running.wait()


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    work = tmp_path_factory.mktemp("work") / "demo"
    kill_while_it_trains(work)
    return work, sweep(work)


def test_a_killed_sweep_resumes_where_it_stopped(first):
    work, result = first
    assert result.returncode == 0, (result.stdout + result.stderr)[-3000:]
    events = [json.loads(line) for line in (work / "runs/dpo/events.jsonl").read_text().splitlines()]
    starts = [event["step"] for event in events if event["event"] == "started"]
    assert (len(starts), starts[0]) == (2, 0)
    assert 0 < starts[1] < STEPS
    assert [event["step"] for event in events if event["event"] == "complete"] == [STEPS]
    assert result.stdout.count("unchanged, already done") >= 5  # questions, pairs, model, its check and its score


def test_from_questions_to_a_report(first):
    work, result = first
    assert result.returncode == 0, (result.stdout + result.stderr)[-3000:]
    with (work / "report/report.csv").open() as table:
        rows = {row["model"]: row for row in csv.DictReader(table)}
    assert list(rows) == ["base", "dpo", "minordpo"]
    for loss in ("dpo", "minordpo"):
        lines = [json.loads(line) for line in (work / f"runs/{loss}/metrics.jsonl").read_text().splitlines()]
        assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
        assert lines[0]["values"]["rewards/margin"] == 0.0
        score = json.loads((work / f"runs/{loss}/evaluation/score.json").read_text())
        assert score["num_questions"] == 6
        assert len((work / f"runs/{loss}/evaluation/predictions.jsonl").read_text().splitlines()) == 6
        assert (work / f"runs/{loss}/hf/model.safetensors").exists()
    assert (work / "report/rewards.png").stat().st_size > 10_000
    assert "rewards/chosen" in (work / "report/report.md").read_text()
    with (work / "report/numbers/comparisons.csv").open() as table:
        compared = [(row["model"], row["against"]) for row in csv.DictReader(table) if row["accuracy"] == "strict"]
    assert compared == [("dpo", "base"), ("minordpo", "base"), ("minordpo", "dpo")]


def test_a_complete_sweep_repeats_nothing(first):
    work, _ = first
    written = {path: path.stat().st_mtime_ns for path in work.rglob("*") if path.is_file()}
    result = sweep(work)
    assert result.returncode == 0, result.stderr
    assert "unchanged, already done" in result.stdout
    assert {path: path.stat().st_mtime_ns for path in work.rglob("*") if path.is_file()} == written
