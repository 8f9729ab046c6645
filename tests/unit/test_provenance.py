import re
import shutil
import subprocess
from pathlib import Path

import grimp
import pytest

from nemo_minordpo import provenance
from nemo_minordpo.provenance import code_digest, code_version, source_commit

PACKAGE = Path(provenance.__file__).parent


def _git(folder, *arguments):
    author = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    run = subprocess.run(["git", *author, *arguments], cwd=folder, check=True, capture_output=True, text=True)
    return run.stdout.strip()


def test_the_commit_of_a_checkout_says_whether_files_were_changed(tmp_path, monkeypatch):
    package = tmp_path / "nemo_minordpo"
    package.mkdir()
    (package / "provenance.py").write_text("one\n")
    monkeypatch.setattr(provenance, "__file__", str(package / "provenance.py"))
    assert source_commit() is None  # no checkout
    _git(tmp_path, "init", "--quiet")
    assert source_commit() is None  # no commit
    _git(tmp_path, "add", ".")
    _git(tmp_path, "commit", "--quiet", "-m", "one")
    commit = _git(tmp_path, "rev-parse", "HEAD")
    assert source_commit() == commit
    (package / "provenance.py").write_text("two\n")
    assert source_commit() == commit + "+changes"


@pytest.fixture
def copy(tmp_path, monkeypatch):
    """A second installation that provenance.py is made to use."""
    folder = tmp_path / "nemo_minordpo"
    shutil.copytree(PACKAGE, folder, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(provenance, "__file__", str(folder / "provenance.py"))
    return folder


def _file(module):
    path = Path(*module.split("."))
    return path / "__init__.py" if (PACKAGE.parent / path).is_dir() else path.with_suffix(".py")


@pytest.mark.parametrize(
    ("stage", "module"), [("train", "train.run"), ("prepare", "prepare.build"), ("evaluate", "evaluate.run")]
)
def test_every_module_that_a_stage_imports_is_in_its_digest(copy, stage, module):
    imported = grimp.build_graph("nemo_minordpo", cache_dir=None).find_upstream_modules(f"nemo_minordpo.{module}")
    assert "nemo_minordpo.errors" in imported
    assert len(imported) > 10
    before = code_digest(stage)
    for file in map(_file, sorted(imported)):
        text = (copy.parent / file).read_bytes()
        (copy.parent / file).write_bytes(text + b"\n")
        assert code_digest(stage) != before, file
        (copy.parent / file).write_bytes(text)
    assert code_digest(stage) == before


def test_two_installations_have_the_same_digest(copy, monkeypatch):
    (copy / "core" / "__pycache__").mkdir()
    (copy / "core" / "__pycache__" / "logits.cpython-311.pyc").touch()
    (copy / "core" / "notes.txt").touch()
    there = code_digest("train")
    monkeypatch.setattr(provenance, "__file__", str(PACKAGE / "provenance.py"))
    assert code_digest("train") == there
    assert code_digest("train") != code_digest("prepare")


def test_other_stages_are_not_in_the_digest(copy):
    before = code_digest("train")
    for file in ("prepare/build.py", "report/__init__.py", "evaluate/run.py", "commands/data.py", "__main__.py"):
        (copy / file).write_text("changed\n")
    assert code_digest("train") == before
    (copy / "core" / "logits.py").rename(copy / "core" / "logit.py")
    renamed = code_digest("train")
    assert renamed != before
    (copy / "placed_by_nobody.py").touch()
    assert code_digest("train") != renamed


def test_the_stages_are_those_of_the_layers():
    settings = (PACKAGE.parent / "pyproject.toml").read_text()
    layers = re.findall('"(.+)"', settings.partition("\nlayers = [")[2].partition("]")[0])
    stages = layers.index(" | ".join(provenance._STAGES))
    above = {name for layer in layers[:stages] for name in layer.split(" | ")}
    assert {name.removesuffix(".py") for name in provenance._ABOVE_STAGES} == above


def test_packages_belong_to_a_version(monkeypatch):
    monkeypatch.setattr(provenance, "installed_versions", lambda: {"torch": "2.6", "numpy": "1.26"})
    assert code_version("train") == f"{code_digest('train')}, torch 2.6, numpy 1.26"
