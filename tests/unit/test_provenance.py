import subprocess

from nemo_minordpo import provenance
from nemo_minordpo.provenance import source_commit


def _git(folder, *arguments):
    author = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    run = subprocess.run(["git", *author, *arguments], cwd=folder, check=True, capture_output=True, text=True)
    return run.stdout.strip()


def test_the_commit_of_a_checkout_says_whether_it_was_changed(tmp_path, monkeypatch):
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
