"""Names on the hub, and what is said if a model cannot be downloaded."""

import subprocess
import sys

import huggingface_hub
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError

from nemo_minordpo.errors import UserError
from nemo_minordpo.hub import download_model, is_hub_name


def test_names_on_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models/mine").mkdir(parents=True)
    assert is_hub_name("Qwen/Qwen2.5-0.5B-Instruct")
    for other in ("models/mine", "Qwen", "/models/other", "a/b/c", "./mine", "~/mine"):
        assert not is_hub_name(other)


def test_the_weights_that_are_read_are_downloaded(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, **options: calls.append((name, options)))
    download_model("a/b", tmp_path)
    ((name, options),) = calls
    assert (name, options["local_dir"]) == ("a/b", tmp_path)
    assert "*.safetensors" not in options["ignore_patterns"]
    assert "*.gguf" in options["ignore_patterns"]


@pytest.mark.parametrize("error", [LocalEntryNotFoundError("no network"), OSError("no space")])
def test_the_reason_of_a_failure_is_one_line(tmp_path, monkeypatch, error):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(UserError, match=r"a/b: cannot be downloaded .*(no network|no space).*name the folder"):
        download_model("a/b", tmp_path)


def test_without_a_network_the_command_fails_in_one_line(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "nemo_minordpo.hub", "a/b", str(tmp_path / "out")], capture_output=True, text=True,
        env={"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "PATH": "/usr/bin"}, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "error: a/b: cannot be downloaded" in done.stderr
    assert "Traceback" not in done.stderr
