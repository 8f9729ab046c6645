"""The output of `minordpo status` for run folders in every state."""

import os

import pytest

from nemo_minordpo.files import to_json_line, write_json, write_text
from nemo_minordpo.records import Failure, RunEvent, StepMetrics
from nemo_minordpo.report.health import health_of
from nemo_minordpo.report.run_state import first_failure
from nemo_minordpo.report.runs import read_run
from nemo_minordpo.report.status import print_status

CONFIG = "model: {dpo: {preference_loss: minordpo, ref_policy_kl_penalty: 0.1}, optim: {lr: 1.0e-6}}\n"


class Folder:
    """A run folder written line by line, one line per second."""

    def __init__(self, path):
        self.path, self._second = path, 0
        write_text(path / "config.yaml", CONFIG)

    def _now(self):
        self._second += 1
        return f"2024-01-01T00:00:{self._second:02d}.000000+00:00"

    def event(self, event, attempt=1, **more):
        values = {"step": 0, **more}
        line = RunEvent(time=self._now(), attempt=attempt, job=f"job_7.{attempt - 1}", event=event, **values)
        with (self.path / "events.jsonl").open("a") as out:
            out.write(to_json_line(line))

    def failure(self, error, rank=0, node="node1"):
        failure = Failure(time=self._now(), job="job_7.0", rank=rank, node=node, error=error, traceback="")
        write_json(self.path / f"failures/{failure.time}-{rank}.json", vars(failure))
        return failure

    def steps(self, count):
        values = {"loss": 0.5, "rewards/chosen": 1.25, "rewards/margin": 2.0, "step_s": 3.0, "pairs_per_s": 42.0}
        lines = [StepMetrics(split="train", step=k + 1, epoch=0, consumed_pairs=k, values=values) for k in range(count)]
        write_text(self.path / "metrics.jsonl", "".join(map(to_json_line, lines)))

    def status(self, capsys):
        complete = print_status(self.path)
        return complete, capsys.readouterr().out


@pytest.fixture
def folder(tmp_path):
    return Folder(tmp_path / "run")


def test_not_started(folder, capsys):
    complete, said = folder.status(capsys)
    assert not complete
    assert "no step yet" in said
    assert said.endswith("not started\n")


def test_running(folder, capsys):
    folder.event("started", detail="2 nodes x 2 ranks", max_steps=100)
    folder.steps(40)
    folder.event("saved", step=30)
    complete, said = folder.status(capsys)
    assert not complete
    assert "step 40 of 100: loss 0.5, rewards/chosen 1.25, rewards/margin 2" in said
    assert "3 s per step, 42 pairs/s; left: 0:03:00" in said
    assert "last checkpoint: step 30, " in said
    assert "attempt 1 (job_7.0, 2 nodes x 2 ranks): from step 0\n" in said
    assert said.endswith("running, or killed\n")


def test_stopped_and_resumed_and_complete(folder, capsys):
    folder.event("started", max_steps=9)
    folder.event("saved", step=4)
    folder.event("stopped", step=4, detail="SIGUSR1")
    assert folder.status(capsys)[1].endswith("stopped (SIGUSR1); the same command resumes it after step 4\n")
    folder.event("started", attempt=2, step=4, max_steps=9)
    folder.event("complete", attempt=2, step=9)
    complete, said = folder.status(capsys)
    assert complete
    assert "from step 0, stopped at step 4: SIGUSR1\n" in said
    assert "from step 4, complete at step 9\n" in said
    assert said.endswith("complete\n")


def test_killed_between_the_model_and_the_event(folder, capsys):
    folder.event("started", max_steps=9)
    (folder.path / "model.nemo").touch()
    complete, said = folder.status(capsys)
    assert complete
    assert said.endswith("complete\n")


def test_the_first_failure_is_named_and_not_its_consequences(folder, capsys):
    folder.event("started", max_steps=9)
    folder.failure("RuntimeError: [gloo] Connection closed by peer [10.0.0.2]:1234", rank=0)
    folder.failure("the process ended without a message: Killed", rank=3, node="node2")
    assert folder.status(capsys)[1].endswith("failed; the same command starts it from the beginning\n")
    folder.event("started", attempt=2, max_steps=9)
    said = folder.status(capsys)[1]
    assert "from step 0, failed: rank 3 on node2: the process ended without a message: Killed\n" in said
    assert said.endswith("running, or killed\n")


def test_a_lost_node_leaves_no_message(folder, capsys):
    folder.event("started", max_steps=9)
    folder.event("started", attempt=2, step=3, max_steps=9)
    folder.failure("RuntimeError: [gloo] Read error [10.0.0.2]:1234: Connection reset by peer", rank=2)
    folder.event("started", attempt=3, step=3, max_steps=9)
    said = folder.status(capsys)[1]
    assert "failed: a rank or node was lost; first noticed by rank 2 on node1: RuntimeError" in said
    assert "ended without a message (killed, or its node was lost)" in said


def test_failure_before_the_first_step(folder, capsys):
    folder.failure("ValueError: token id 7 is beyond the vocabulary", rank=1)
    said = folder.status(capsys)[1]
    assert "before the first step: rank 1 on node1: ValueError: token id 7" in said
    assert said.endswith("failed; the same command starts it from the beginning\n")


def test_a_non_finite_value_is_reported_without_advice_to_resume(folder, capsys):
    folder.event("started", max_steps=9)
    folder.steps(2)
    reason = "step 3: loss not finite for 2 of 4 pairs: train.jsonl:7, train.jsonl:9"
    folder.failure("RuntimeError: [gloo] Connection closed by peer [10.0.0.2]:1234", rank=1)
    folder.failure(f"NotFiniteError: {reason}", rank=0)
    complete, said = folder.status(capsys)
    assert not complete
    assert f"from step 0, failed: rank 0 on node1: NotFiniteError: {reason}\n" in said
    assert said.endswith(
        f"failed; {reason}; the same command would fail again: change settings or inputs, in a new folder\n"
    )
    run = read_run(folder.path)
    assert any(reason in note for note in run.notes)
    assert health_of(run).state == "failed"
    # a failure of an earlier attempt says nothing about the current one
    folder.event("started", attempt=2, max_steps=9)
    assert folder.status(capsys)[1].endswith("running, or killed\n")
    folder.failure("RuntimeError: out of memory", rank=0)
    assert folder.status(capsys)[1].endswith("failed; the same command starts it from the beginning\n")


def test_a_non_finite_reference_is_a_failure_not_an_unknown_end(folder):
    reason = "reference of train pairs: log-probabilities not finite for 2 of 4 pairs: train.jsonl:7, train.jsonl:9"
    folder.failure(f"NotFiniteError: {reason}")
    run = read_run(folder.path)
    assert health_of(run).state == "failed"
    assert not run.is_finished
    (note,) = (note for note in run.notes if "no training step" in note)
    assert note.endswith(
        f"; failed; {reason}; the same command would fail again: change settings or inputs, in a new folder"
    )


def test_a_run_that_was_copied_without_its_events_is_unknown_and_finished(folder):
    folder.steps(3)
    run = read_run(folder.path)
    assert health_of(run).state == "unknown"
    assert run.is_finished


def test_the_set_up_is_an_attempt_with_its_own_failures(folder, capsys):
    folder.event("begun")
    assert folder.status(capsys)[1].endswith("setting up, or killed\n")
    folder.failure("UserError: exp_manager.create_wandb_logger: W&B cannot be opened: no key")
    said = folder.status(capsys)[1]
    assert "attempt 1 (job_7.0): during set-up, failed: rank 0 on node1: UserError: exp_manager" in said
    assert said.endswith(
        "failed; exp_manager.create_wandb_logger: W&B cannot be opened: no key; "
        "the same command would fail again: change settings or inputs\n"
    )
    folder.event("begun", attempt=2)
    folder.event("started", attempt=2, detail="1 node", max_steps=9)
    said = folder.status(capsys)[1]
    assert "attempt 1 (job_7.0): during set-up, failed: " in said
    assert "attempt 2 (job_7.1, 1 node): from step 0\n" in said
    assert said.endswith("running, or killed\n")


@pytest.mark.parametrize("failed", [True, False])
def test_what_a_launcher_waits_for_stands_in_place_of_advice(folder, capsys, failed):
    folder.event("started", max_steps=9)
    if failed:
        folder.failure("RuntimeError: [gloo] Connection closed by peer [10.0.0.2]:1234", rank=1)
    path = folder.path / "logs/waiting"
    write_text(path, "a node does not answer; waiting for Slurm to replace it\n")
    os.utime(path, (1e9, 1e9))
    said = folder.status(capsys)[1]
    what = "failed" if failed else "ended without a message"
    assert said.endswith(
        f"\n{what}; its job at 2001-09-09 01:46:40 UTC: a node does not answer; waiting for Slurm to replace it\n"
    )
    path.unlink()
    assert "its job" not in folder.status(capsys)[1]


def test_damaged_checkpoints_and_torn_lines(folder, capsys):
    folder.event("started", max_steps=9)
    folder.event("damaged", step=6, detail="step_000006: __0_0.distcp has 3 bytes, 9 were written")
    with (folder.path / "events.jsonl").open("a") as out:
        out.write('{"time": "2024')
    assert "set aside: step_000006: __0_0.distcp has 3 bytes, 9 were written" in folder.status(capsys)[1]


def test_alarms_of_the_degeneration_watch(folder, capsys):
    folder.event("started", detail="1 node x 1 rank", max_steps=100)
    folder.event("alarm", step=5, detail="already")
    folder.event("alarm", step=20, detail="they repeat themselves")
    folder.event("alarm", step=30, detail="at a step that was repeated without an alarm")
    folder.event("started", attempt=2, step=10, detail="1 node x 1 rank", max_steps=100)
    folder.event("alarm", attempt=2, step=20, detail="they do it again")
    folder.event("alarm", attempt=2, step=40, detail="still")
    folder.steps(50)
    _, said = folder.status(capsys)
    alarms = [line for line in said.splitlines() if line.startswith("alarm")]
    assert alarms == [
        "alarm after step 5: already",
        "alarm after step 20: they do it again",
        "alarm after step 40: still",
    ]


def test_only_consequences(folder):
    late, early = folder.failure("nothing moved for 60 s"), folder.failure("Connection reset by peer")
    assert first_failure([early, late]) == late
    assert first_failure([]) is None


def test_no_run_folder(tmp_path):
    with pytest.raises(ValueError, match="not a run folder"):
        print_status(tmp_path)
