"""Which attempt may write a run folder, and the record of events and failures."""

import json

import pytest

from nemo_minordpo.errors import UserError
from nemo_minordpo.records import Failure, RunEvent
from nemo_minordpo.train.folder.attempt import Attempt, ReplacedError, record_failure


def test_attempts_are_counted(tmp_path):
    assert [Attempt.claim(tmp_path).number for _ in range(3)] == [1, 2, 3]


def test_a_replaced_attempt_is_told_which_one_replaced_it(tmp_path, monkeypatch):
    first = Attempt.claim(tmp_path)
    first.check()
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "3")
    second = Attempt.claim(tmp_path)
    with pytest.raises(ReplacedError, match=r"attempt 1 \(local on .*\) was replaced by attempt 2 \(job_12.3 on "):
        first.check()
    second.check()


def test_a_removed_run_folder_is_reported(tmp_path):
    attempt = Attempt.claim(tmp_path)
    (tmp_path / "attempt.json").unlink()
    with pytest.raises(ReplacedError, match="another process removed the run folder"):
        attempt.check()


@pytest.mark.parametrize("content", ["", "{}", '{"number": "1", "token": "x"}', "[" * 100_000])
def test_a_damaged_attempt_file_is_named(tmp_path, content):
    (tmp_path / "attempt.json").write_text(content)
    with pytest.raises(UserError, match=r"attempt\.json: "):
        Attempt.claim(tmp_path)


def test_events_are_appended_as_lines(tmp_path):
    attempt = Attempt.claim(tmp_path)
    attempt.note("started", step=3, detail="2 nodes", max_steps=9)
    attempt.note("saved", step=6)
    lines = [RunEvent.from_json(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert [(line.event, line.step, line.max_steps, line.attempt) for line in lines] == [
        ("started", 3, 9, 1),
        ("saved", 6, 0, 1),
    ]
    assert lines[0].time < lines[1].time


def test_a_failure_has_its_traceback(tmp_path):
    try:
        json.loads("{")
    except ValueError as error:
        record_failure(tmp_path, error, rank=5)
    (file,) = (tmp_path / "failures").iterdir()
    failure = Failure.from_json(file.read_text())
    assert failure.rank == 5
    assert failure.error.startswith("JSONDecodeError: Expecting property name")
    assert "\n" not in failure.error
    assert "json.loads" in failure.traceback


def test_a_failure_that_cannot_be_recorded_is_printed(tmp_path, capsys):
    (tmp_path / "failures").write_text("in the way")
    record_failure(tmp_path, "out of space", rank=1, node="node7")
    assert "rank 1 on node7: out of space (not recorded" in capsys.readouterr().err
