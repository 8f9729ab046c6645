"""Every command and setting that README and docs show is one that works here, or would where its inputs are.

`minordpo` lines go through the command line's own parser, their settings through the configuration's own checks; of
other programs it is checked that targets, modules, scripts, options and variables exist.
"""

import importlib.util
import itertools
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import typer
from omegaconf import OmegaConf

from nemo_minordpo.__main__ import app
from nemo_minordpo.commands.checks import check_command
from nemo_minordpo.config import compose, load
from nemo_minordpo.config.keys import SETTINGS
from nemo_minordpo.nemo_rl.settings import objective_of
from nemo_minordpo.sweep.config import load_experiment
from tests.unit.docs.reading import PAGES, ROOT, blocks, commands, spans, words_of
from tests.unit.nemo_rl.contract import DPOConfig

REQUIRED = {
    "pretrained_checkpoint.restore_from_path": "base.nemo",
    "model.data.data_prefix.train": "[pairs/train.jsonl]",
    "model.dpo.ref_policy_kl_penalty": "0.1",
    "exp_manager.explicit_log_dir": "run",
}
_ASSIGNMENT = re.compile(r"(\w+)=(.*)", re.DOTALL)
_SETTING = re.compile(r"\+?(model|trainer|exp_manager|pretrained_checkpoint)(\.\w+)+")
_GIVEN = re.compile(
    r"(\+?(model|trainer|exp_manager|pretrained_checkpoint)(\.\w+)+|precision|fusions|parallel|model)=\S+"
)


def check(words):
    """Refuse a command that would not work.

    Raises:
        AssertionError, UserError, or a usage error of the command line: what is wrong with it.
    """
    while words and (variable := _ASSIGNMENT.fullmatch(words[0])):
        if variable[1].startswith("MINORDPO_"):
            assert known_variable(variable[1]), f"nothing reads {variable[1]}"
        words = words[1:]
    if not words or words[0] in ("export", "-c"):
        return  # of the shell alone: an assignment, or what stands in one
    program, rest = words[0], words[1:]
    if program.startswith("launchers/"):
        program, rest = "bash", words
    assert program in CHECKS, f"no check for {program}"
    CHECKS[program](rest)


def check_minordpo(words):
    root = command = typer.main.get_command(app)
    rest = words
    while hasattr(command, "commands") and rest:
        assert rest[0] in command.commands, f"no command {rest[0]}"
        command, rest = command.commands[rest[0]], rest[1:]
    if not rest and len(words) <= 2:
        return  # its name
    if words[0] == "train":
        words = ["train", *with_required(rest)]
    check_command(root, words, model=None)
    context = command.make_context(command.name, list(rest))
    if words[0] in ("reference", "plan"):
        check_settings(context.args)
    if words[0] == "sweep":
        load_experiment(context.params["experiment"], context.params["overrides"] or [])


def check_settings(overrides):
    load(compose(with_required(overrides)))


def with_required(overrides):
    """With those that every run needs, where the text leaves them to the reader."""
    given = {text.split("=")[0].lstrip("+") for text in overrides}
    return [*(f"{key}={value}" for key, value in REQUIRED.items() if key not in given), *overrides]


def check_make(words):
    text = (ROOT / "Makefile").read_text()
    for word in words:
        if variable := _ASSIGNMENT.fullmatch(word):
            assert re.search(rf"^{variable[1]}\b", text, re.MULTILINE), f"the Makefile has no {variable[1]}"
        else:
            assert re.search(rf"^{word}:.*## ", text, re.MULTILINE), f"the Makefile has no documented target {word}"


def check_module(words):
    assert words[0] == "-m", words
    module, rest = words[1], words[2:]
    if module == "pip":
        return check_pip(rest)
    found = importlib.util.find_spec(module)
    assert found is not None, f"no module {module}"
    if found.submodule_search_locations:
        found = importlib.util.find_spec(f"{module}.__main__")
        assert found is not None, f"{module} is no program"
    source = Path(found.origin).read_text()
    if module == "nemo_minordpo.train":
        check_settings(rest)
        return None
    if module == "nemo_minordpo.nemo_rl.run_dpo":
        given = OmegaConf.from_dotlist([word for word in rest if word.startswith("dpo.")])
        objective_of(DPOConfig(**OmegaConf.to_container(given.dpo)))
    for option in (word.split("=")[0] for word in rest if word.startswith("--")):
        assert f'"{option}"' in source, f"{module} has no option {option}"
    return None


def check_uv(words):
    assert words[0] == "run"
    check(words[1:])


def check_sbatch(words):
    script, *rest = (word for word in words if not word.startswith("-"))
    assert (ROOT / script).is_file(), f"no script {script}"
    if Path(script).name in ("minordpo.sub", "reference.sub"):
        check_settings(rest)
    elif rest:
        assert Path(script).name == "command.sub", f"{script} takes other arguments"
        check_minordpo(rest)


def check_torchrun(words):
    check_module(words[words.index("-m") :])


def check_pip(words):
    assert words[0] == "install"
    text = (ROOT / "pyproject.toml").read_text()
    for extra in re.findall(r"\.\[([\w-]+)\]", " ".join(words)):
        assert re.search(rf"^{extra} = \[", text, re.MULTILINE), f"no extra {extra}"


def check_lm_eval(words):
    options = dict(zip(words[1::2], words[2::2], strict=False))
    # the name of a task is what its file is called
    assert (Path(options["--include_path"]) / f"{options['--tasks']}.yaml").is_file(), f"no task {options['--tasks']}"


def check_file(words):
    # what a line before it has made stands beside its example
    file = ROOT / words[0]
    assert file.is_file() or file.with_name(f"{file.stem}.example{file.suffix}").is_file(), f"no file {words[0]}"


CHECKS = {
    "minordpo": check_minordpo,
    "make": check_make,
    "python": check_module,
    "python3": check_module,
    "sbatch": check_sbatch,
    "torchrun": check_torchrun,
    "uv": check_uv,
    "pip": check_pip,
    "lm_eval": check_lm_eval,
    "cp": check_file,
    "source": check_file,
    "bash": check_file,
}


@cache
def known_variable(name):
    files = [*(ROOT / "launchers").iterdir(), *(ROOT / "nemo_minordpo").rglob("*.py"), *(ROOT / "tests").glob("*.py")]
    return any(re.search(rf"\b{name}\b", file.read_text(errors="ignore")) for file in files)


@pytest.fixture(autouse=True)
def inputs(tmp_path, monkeypatch):
    """What experiments name, by name; the paths of a command are the reader's."""
    here = tmp_path / "checkout"
    for file in (
        "assets/demo-model/config.json", "models/Qwen1.5-7B-Chat/config.json", "gsm8k/test.jsonl",
        "../shared/data/gsm8k/train.jsonl", "../shared/data/gsm8k/test.jsonl",
    ):  # fmt: skip
        (here / file).parent.mkdir(parents=True, exist_ok=True)
        (here / file).touch()
    (here / "nemo_minordpo").symlink_to(ROOT / "nemo_minordpo")
    (loss,) = [block for block in blocks(ROOT / "docs/extending.md", "python") if "def simpo" in block.text]
    (here / "my_losses.py").write_text(loss.text)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.chdir(here)
    yield
    sys.modules.pop("my_losses", None)


def faults_of(path):
    """(what is wrong, commands that were checked)."""
    faults, count = [], 0
    for shown in commands(path):
        count += 1
        try:
            check(words_of(shown.text))
        except Exception as error:  # a usage error is a class of click's, or of the copy in typer
            faults.append(f"{shown.place}: {shown.text}\n    {type(error).__name__}: {error}")
    return faults, count


def test_every_command_is_one_that_works():
    found = {path.name: faults_of(path) for path in PAGES}
    assert not [fault for faults, _ in found.values() for fault in faults]
    assert sum(count for _, count in found.values()) > 100
    assert found["README.md"][1] >= 12


@pytest.mark.parametrize(
    "command",
    [
        "minordpo traim model.optim.lr=1e-6",
        "minordpo train model.optim.learning_rate=1e-6",
        "minordpo train model.optim.lr=-1",
        "minordpo report runs/dpo --out report",
        "minordpo sweep demoo",
        "make demoo",
        "make test PYTESTARGS=-s",
        "python -m tests.benchmarks.nothing",
        "python -m tests.benchmarks.plan --nothing",
        "uv run python -m nemo_minordpo.nemo_rl.run_dpo --config a.yaml dpo.dpop_lamda=5",
        "uv run python -m nemo_minordpo.nemo_rl.run_dpo --configuration a.yaml dpo.dpop_lambda=5",
        "sbatch launchers/nothing.sub a=b",
        "sbatch launchers/minordpo.sub model.dpo.loss=dpo",
        "sbatch launchers/command.sub imporrt-hf hf base.nemo",
        "pip install '.[gpus]'",
        "MINORDPO_QUESTION=x make demo",
        "curl https://example.com",
    ],
)
def test_a_command_that_does_not_work_would_be_found(command):
    with pytest.raises(Exception):  # noqa: B017, PT011  # each in its own way
        check(words_of(command))


def test_blocks_are_shell_that_bash_can_read():
    text = "\n".join(f"{{\n{block.text}\n}}" for path in PAGES for block in blocks(path, ""))
    done = subprocess.run(["bash", "-n"], input=text, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_every_setting_in_the_text_is_one_that_can_be_given():
    unknown, given = [], {}
    for path in PAGES:
        for span in spans(path):
            words = span.text.split()
            if _SETTING.fullmatch(span.text) and not span.text.endswith((".nemo", ".tokenizer")):
                if span.text.lstrip("+") not in SETTINGS:
                    unknown.append(f"{span.place}: {span.text}")
            elif all(_GIVEN.fullmatch(word) for word in words) and "KEY" not in span.text:
                for word in words:
                    given.setdefault(word.split("=")[0], set()).add(word)
    assert not unknown
    assert len(given) >= 15
    # several at a time, which takes a second instead of eight: the first values of all settings, the second ones, ...
    for overrides in itertools.zip_longest(*map(sorted, given.values())):
        compose([override for override in overrides if override is not None])


def test_every_variable_of_the_project_in_the_text_is_read():
    named = {name for path in PAGES for span in spans(path) for name in re.findall(r"\bMINORDPO_\w+", span.text)}
    assert len(named) >= 2
    assert not [name for name in named if not known_variable(name)]
