"""The command line, with stand-ins for the stages that only record how they were called."""

import shlex
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import typer
from typer.testing import CliRunner

from nemo_minordpo.__main__ import app
from nemo_minordpo.errors import UserError

HEAVY = ("torch", "nemo", "megatron", "transformers", "matplotlib", "hydra", "omegaconf", "numpy")
ROOMS = {"config", "convert", "core", "evaluate", "layers", "prepare", "report", "sweep", "train"}


@pytest.fixture
def run():
    return lambda *arguments: CliRunner().invoke(app, list(arguments), prog_name="minordpo")


@pytest.fixture
def stage(monkeypatch):
    """Replace a stage by a stand-in; returns the list of its calls."""

    def place(module, function, *, raises=None, returns=None):
        calls = []

        def record(*arguments, **keywords):
            calls.append((arguments, keywords))
            if raises is not None:
                raise raises
            return returns

        monkeypatch.setitem(sys.modules, f"nemo_minordpo.{module}", SimpleNamespace(**{function: record}))
        return calls

    return place


@pytest.fixture(autouse=True)
def no_adapters(monkeypatch):
    """`import-hf` first checks whether the folder is PEFT's."""
    stand_in = SimpleNamespace(import_peft=None, is_peft_folder=lambda source: False)
    monkeypatch.setitem(sys.modules, "nemo_minordpo.convert.peft_to_nemo", stand_in)


def test_help_loads_no_stage():
    script = (
        "import sys\nsys.argv = ['minordpo', '--help']\nfrom nemo_minordpo.__main__ import main\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert end.code == 0\n"
        f"loaded = [name for name in {HEAVY!r} if name in sys.modules]\n"
        "ours = {name.split('.')[1] for name in sys.modules if name.startswith('nemo_minordpo.')}\n"
        f"print('LOADED', loaded, sorted(ours & {ROOMS!r}), 'commands' in ours)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("LOADED [] [] True\n")
    assert "minordpo prepare gsm8k" in done.stdout


def _examples():
    """Every command line that the help texts show."""
    group = typer.main.get_command(app)
    commands = {("minordpo",): group}
    for name, command in group.commands.items():
        commands[("minordpo", name)] = command
        for inner, command_of_group in getattr(command, "commands", {}).items():
            commands[("minordpo", name, inner)] = command_of_group
    for path, command in commands.items():
        text = command.help.replace("\\\n", " ")
        # two spaces separate an example of the pipeline from its remark
        yield path, [line.strip().split("   ")[0] for line in text.splitlines() if line.strip().startswith("minordpo ")]


def test_every_command_shows_a_valid_example():
    group = typer.main.get_command(app)
    swept = 0
    for path, examples in _examples():
        own = [line for line in examples if tuple(shlex.split(line)[: len(path)]) == path]
        assert own or path == ("minordpo", "prepare"), path
        for line in examples:
            command, words = group, shlex.split(line)[1:]
            while hasattr(command, "commands"):
                command, words = command.commands[words[0]], words[1:]
            command.make_context("example", words)  # raises a usage error for an unknown option
            swept += 1
    assert swept >= 20


def test_an_example_with_a_wrong_option_would_be_found():
    command = typer.main.get_command(app).commands["report"]
    with pytest.raises(Exception, match="No such option"):
        command.make_context("example", ["runs/dpo", "--out", "report"])


def test_commands_are_listed_in_pipeline_order(run):
    group = typer.main.get_command(app)
    listed = group.list_commands(None)
    assert set(listed) == set(group.commands)
    assert listed == [
        "doctor", "prepare", "inspect", "preview", "gguf-to-hf", "import-hf", "verify", "reference", "plan", "train",
        "status", "export-hf", "evaluate", "score", "report", "sweep",
    ]  # fmt: skip
    text = run("--help").output
    assert text.index("  train ") < text.index("  export-hf ") < text.index("  evaluate ")


def test_train_passes_overrides_on_unchanged(run, stage):
    calls = stage("train.launch", "main")
    overrides = ["a.b=1", "+c='x y'", "~d", "++e=[1,2]", "--cfg", "job", "model.data.data_prefix.train=[a b.jsonl]"]
    assert run("train", *overrides).exit_code == 0
    assert calls == [((overrides,), {})]


def test_train_help_is_ours(run, stage):
    calls = stage("train.launch", "main")
    text = run("train", "--help").output
    assert "model.dpo.preference_loss=NAME" in text
    assert calls == []


def test_paths_and_options_reach_the_stage(run, stage):
    score = SimpleNamespace(
        num_questions=8,
        strict_accuracy=0.5,
        strict_interval_95=(0.2, 0.8),
        flexible_accuracy=0.625,
        degenerate_rate=0.25,
    )
    calls = stage("evaluate.run", "evaluate", returns=score)
    done = run("evaluate", "hf", "q.jsonl", "out", "--limit", "7", "--batch-size", "3", "--system", "Be brief.")
    assert done.exit_code == 0, done.output
    ((arguments, keywords),) = calls
    assert arguments == (Path("hf"), Path("q.jsonl"), Path("out"))
    assert keywords["limit"] == 7
    assert keywords["batch_size"] == 3
    assert keywords["system"] == "Be brief."
    assert keywords["overwrite"] is False
    assert "8 questions: strict 50.0% (95 % interval 20.0% to 80.0%), flexible 62.5%, degenerate 25.0%" in done.stdout


def test_overwrite_is_off_by_default(run, stage):
    calls = stage("convert.hf_to_nemo", "import_hf", returns=SimpleNamespace(counts={"hf_tensors": 1234}))
    assert run("import-hf", "hf", "base.nemo").stdout == "1,234 hf tensors -> base.nemo\n"
    calls.clear()
    run("import-hf", "hf", "base.nemo")
    run("import-hf", "hf", "base.nemo", "--overwrite", "--dtype", "bfloat16")
    assert [keywords for _, keywords in calls] == [
        {"dtype": None, "overwrite": False},
        {"dtype": "bfloat16", "overwrite": True},
    ]


def test_a_users_error_is_one_line_and_exit_code_2(run, stage):
    stage("convert.hf_to_nemo", "import_hf", raises=UserError("hf/config.json:3: no such thing; do this"))
    done = run("import-hf", "hf", "base.nemo")
    assert done.exit_code == 2
    assert done.stderr == "error: hf/config.json:3: no such thing; do this\n"
    assert done.stdout == ""


@pytest.mark.parametrize("bug", [TypeError("a bug"), ValueError("zip() argument 2 is shorter than argument 1")])
def test_a_bug_keeps_its_traceback(run, stage, bug):
    stage("convert.hf_to_nemo", "import_hf", raises=bug)
    assert run("import-hf", "hf", "base.nemo").exception is bug


def test_ctrl_c_ends_with_130(run, stage):
    stage("convert.hf_to_nemo", "import_hf", raises=KeyboardInterrupt())
    assert run("import-hf", "hf", "base.nemo").exit_code == 130


def test_a_missing_package_points_to_doctor(run, stage):
    stage("train.launch", "main", raises=ModuleNotFoundError("No module named 'nemo'", name="nemo.core"))
    done = run("train", "a=1")
    assert done.exit_code == 2
    assert "'nemo.core' is not installed" in done.stderr
    assert "minordpo doctor" in done.stderr


def test_a_missing_module_of_ours_is_a_bug(run, stage):
    lost = ModuleNotFoundError("No module named 'nemo_minordpo.lost'", name="nemo_minordpo.lost")
    stage("train.launch", "main", raises=lost)
    assert run("train", "a=1").exception is lost


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["no-such-command"], "No such command"),
        (["evaluate", "hf"], "Missing argument"),
        (["evaluate", "hf", "q", "out", "--limit", "0"], "'--limit'"),
        (["prepare", "arithmetic", "out", "--num-train", "many"], "'--num-train'"),
        (["report", "runs/dpo"], "Missing option '--output'"),
        (["sweep"], None),
    ],
)
def test_wrong_usage_is_exit_code_2(run, arguments, complaint):
    done = run(*arguments)
    assert done.exit_code == 2
    if complaint:
        assert complaint in done.stderr


def test_python_m_is_the_same_command():
    done = subprocess.run(
        [sys.executable, "-m", "nemo_minordpo", "prepare", "arithmetic", "--help"], capture_output=True, text=True
    )
    assert done.returncode == 0
    assert done.stdout.startswith("Usage: minordpo prepare arithmetic")
