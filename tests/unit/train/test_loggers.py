"""TensorBoard and W&B: what is written where, over several attempts, and the messages if something fails."""

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from nemo_minordpo.config import compose, load
from nemo_minordpo.errors import UserError
from nemo_minordpo.train.folder.loggers import TensorBoard, open_loggers, wandb_arguments

WANDB = "exp_manager.wandb_logger_kwargs"


@pytest.fixture(autouse=True)
def no_settings_of_wandb(monkeypatch):
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)


def config_of(*overrides, folder="run"):
    more = [
        "pretrained_checkpoint.restore_from_path=base.nemo", "model.data.data_prefix.train=[a.jsonl]",
        "model.dpo.ref_policy_kl_penalty=0.1", f"exp_manager.explicit_log_dir={folder}",
    ]  # fmt: skip
    return load(compose([*more, *overrides]))


def with_wandb(*overrides):
    return config_of("exp_manager.create_wandb_logger=true", *overrides)


def test_wandb_arguments_come_from_the_user_then_from_the_run(tmp_path):
    arguments = wandb_arguments(with_wandb(), tmp_path / "run")
    assert (arguments["name"], arguments["project"], arguments["dir"]) == (
        "run",
        "nemo-minordpo",
        str(tmp_path / "run"),
    )
    assert arguments["config"]["model"]["dpo"]["ref_policy_kl_penalty"] == 0.1
    given = "name: 7, project: mine, dir: elsewhere, id: mine7, tags: [a, 1], notes: null, config: {cluster: big}"
    arguments = wandb_arguments(with_wandb(f"+{WANDB}={{{given}}}"), tmp_path / "other")
    expected = {"name": "7", "project": "mine", "dir": "elsewhere", "id": "mine7", "tags": ["a", "1"]}
    assert {key: arguments[key] for key in expected} == expected
    assert "notes" not in arguments
    assert arguments["config"]["cluster"] == "big"
    assert "model" in arguments["config"]
    assert not (tmp_path / "other").exists()


def test_wandb_variables_override_the_runs_values(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_RUN_ID", "theirs")
    monkeypatch.setenv("WANDB_NAME", "their name")
    monkeypatch.setenv("WANDB_PROJECT", "their project")
    arguments = wandb_arguments(with_wandb(f"+{WANDB}.project=mine"), tmp_path)
    assert (arguments["id"], arguments["name"], arguments["project"]) == ("theirs", "their name", "mine")


def test_the_id_belongs_to_the_run_folder(tmp_path):
    ids = [wandb_arguments(with_wandb(), tmp_path / name)["id"] for name in ("a/run", "a/run", "b/run")]
    assert ids[0] == ids[1] != ids[2]
    (tmp_path / "a").rename(tmp_path / "moved")
    assert wandb_arguments(with_wandb(), tmp_path / "moved/run")["id"] == ids[0]


ATTEMPT = """
import os, signal, sys
from pathlib import Path
from tests.unit.train.test_loggers import with_wandb
from nemo_minordpo.train.folder.loggers import open_loggers

folder = Path(sys.argv[1])
loggers = open_loggers(with_wandb("+exp_manager.wandb_logger_kwargs={project: mine, name: first}"), folder)
children = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()
services = [int(child) for child in children if b"wandb" in Path(f"/proc/{child}/cmdline").read_bytes()]
assert len(services) == 1, children
os.kill(services[0], getattr(signal, sys.argv[3]))
for logger in loggers:
    logger.start(int(sys.argv[2]))
    logger.log({"train/loss": 0.5}, int(sys.argv[2]) + 1)
    logger.close(failed=False)
"""


def attempt(folder, *arguments):
    done = subprocess.run(
        [sys.executable, "-c", ATTEMPT, str(folder), *arguments],
        env={**os.environ, "WANDB_MODE": "offline", "PYTHONPATH": str(Path(__file__).parents[3])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


def test_every_attempt_continues_one_wandb_run_which_survives_usr1(tmp_path):
    for step in ("0", "4"):
        output = attempt(tmp_path / "run", step, "SIGUSR1")
        assert "You can sync this run" in output
        assert "W&B gets no more metrics" not in output
    attempts = sorted((tmp_path / "run/wandb").glob("offline-run-*"))
    assert len(attempts) == 2
    (run,) = {path.name.rpartition("-")[2] for path in attempts}
    assert run == (tmp_path / "run/wandb_id").read_text().strip()


def test_the_run_survives_the_end_of_wandb(tmp_path):
    output = attempt(tmp_path / "run", "0", "SIGKILL")
    assert output.count("W&B gets no more metrics from this attempt (") == 1


def test_without_a_key_the_setting_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))  # without a .netrc
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    config = with_wandb(f"+{WANDB}.mode=online")
    with pytest.raises(
        UserError, match=r"^exp_manager.create_wandb_logger: W&B cannot be opened: (?s:.*)WANDB_API_KEY"
    ):
        open_loggers(config, tmp_path / "run")


@pytest.mark.parametrize("name", ["wandb", "tensorboard"])
def test_a_missing_package_is_named_with_its_setting(tmp_path, monkeypatch, name):
    for module in [name, "torch.utils.tensorboard.writer"]:
        monkeypatch.setitem(sys.modules, module, None)
    config = config_of(
        f"exp_manager.create_wandb_logger={'true' if name == 'wandb' else 'false'}",
        f"exp_manager.create_tensorboard_logger={'false' if name == 'wandb' else 'true'}",
    )
    with pytest.raises(UserError, match=rf"^exp_manager.create_{name}_logger: .*: install {name}, or set "):
        open_loggers(config, tmp_path)


def test_tensorboard_shows_repeated_steps_once(tmp_path):
    for resumed, last, loss in ((0, 5, 1.0), (3, 6, 2.0)):
        logger = TensorBoard(tmp_path / "tensorboard")
        logger.start(resumed)
        for step in range(resumed + 1, last + 1):
            logger.log({"train/loss": loss}, step)
        logger.close(failed=False)
    shown = EventAccumulator(str(tmp_path / "tensorboard")).Reload().Scalars("train/loss")
    assert [(one.step, one.value) for one in shown] == [(1, 1.0), (2, 1.0), (3, 1.0), (4, 2.0), (5, 2.0), (6, 2.0)]


def test_disabled_loggers_are_not_opened(tmp_path):
    assert open_loggers(config_of("exp_manager.create_tensorboard_logger=false"), tmp_path) == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("{offline: true}", ".offline: not a setting here: use mode=offline"),
        ("{save_dir: x}", ".save_dir: not a setting here: use dir"),
        ("{log_model: all}", ".log_model: not a setting here: models are not uploaded"),
        ("{resume: must}", ".resume: not a setting here: every attempt at a run continues the same W&B run"),
        ("{projet: x}", ".projet: not a setting; did you mean 'project'?"),
        ("{xyzzy: x}", ".xyzzy: not a setting; known: config, dir, entity, group, id, job_type, mode, name, "),
        ("{tags: one}", ".tags='one': list expected, not str"),
        ("{config: [1]}", ".config=[1]: dict expected, not list"),
        ("{name: [a, b]}", ".name=['a', 'b']: str expected, not list"),
        ("{mode: off}", ".mode='off': online, offline or disabled expected"),
    ],
)
def test_arguments_without_effect_are_refused(override, expected):
    with pytest.raises(UserError) as error:
        with_wandb(f"+{WANDB}={override}")
    assert str(error.value).startswith(WANDB + expected)


def test_arguments_of_wandb_without_wandb_are_refused():
    with pytest.raises(
        UserError, match=r"exp_manager\.create_wandb_logger is not: set exp_manager\.create_wandb_logger=true"
    ):
        config_of(f"+{WANDB}.project=mine")


@pytest.mark.parametrize("name", ["mlflow", "clearml", "dllogger", "neptune"])
@pytest.mark.parametrize("key", ["create_{}_logger=true", "{}_logger_kwargs.project=x"])
@pytest.mark.parametrize("plus", ["", "+"])
def test_unsupported_loggers_are_refused(name, key, plus):
    with pytest.raises(UserError, match=f"{name}_logger"):
        config_of(f"{plus}exp_manager.{key.format(name)}")
