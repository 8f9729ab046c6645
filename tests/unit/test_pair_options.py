"""The options shared by all commands that make pairs: every command has them, with the defaults of the build."""

from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from nemo_minordpo.__main__ import app
from nemo_minordpo.commands.pair_options import Output, pair_options
from nemo_minordpo.prepare.build import BuildOptions
from nemo_minordpo.prepare.chat import Prompting
from nemo_minordpo.prepare.preference import PreferenceRecipe


def _given(*arguments):
    """The arguments that reach a command with one option of its own."""
    calls = []
    small = typer.Typer()

    @small.command()
    @pair_options
    def command(output: Output, own: int = 3, **shared):
        calls.append((output, own, shared))

    result = CliRunner().invoke(small, ["out", *map(str, arguments)])
    assert result.exit_code == 0, result.output
    ((output, own, shared),) = calls
    assert output == Path("out")
    return own, shared


def test_defaults_are_those_of_recipe_and_build():
    own, shared = _given()
    assert own == 3
    assert shared.pop("options") == BuildOptions()
    recipe = PreferenceRecipe()
    assert shared == {"seed": recipe.seed, "prompting": Prompting(), "ignore_columns": list(recipe.ignore_columns)}


def test_every_option_is_passed_on():
    own, shared = _given(
        "--own", 4, "--template", "chat", "--tokenizer", "hf", "--system", "Be brief.", "--date", "2026-11-27",
        "--template-option", "enable_thinking=false", "--ignore-columns", "a, b", "--ignore-columns", "c",
        "--num-validation", 5, "--limit", 6, "--max-rejected", 0.7, "--one-per-question", "--workers", 8, "--seed", 9,
        "--overwrite",
    )  # fmt: skip
    assert own == 4
    assert shared == {
        "seed": 9,
        "ignore_columns": ["a", "b", "c"],
        "prompting": Prompting(
            template="chat", tokenizer=Path("hf"), system="Be brief.", date="2026-11-27",
            template_options={"enable_thinking": False},
        ),
        "options": BuildOptions(
            num_validation=5, limit=6, max_rejected=0.7, one_per_question=True, workers=8, overwrite=True
        ),
    }  # fmt: skip


@pytest.mark.parametrize("command", ["gsm8k", "metamath", "hf", "choices", "answers"])
def test_every_command_that_makes_pairs_has_them(command):
    help_text = " ".join(CliRunner().invoke(app, ["prepare", command, "--help"]).output.split())
    for name in ("--template-option NAME=VALUE", "--ignore-columns", "--num-validation", "--seed", "[default: 1234]"):
        assert name in help_text
    refused = CliRunner().invoke(app, ["prepare", command, "rows.jsonl", "out", "--max-rejected", "2"])
    assert refused.exit_code == 2
    assert "Invalid value for '--max-rejected'" in refused.output
