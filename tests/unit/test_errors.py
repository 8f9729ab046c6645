"""Errors of the machine are reported on one line."""

import errno
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from nemo_minordpo.__main__ import app
from nemo_minordpo.errors import refused_by_machine


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (PermissionError(errno.EACCES, "Permission denied", "runs/a"), "runs/a: Permission denied"),
        (IsADirectoryError(errno.EISDIR, "Is a directory", "pairs"), "pairs: Is a directory"),
        (OSError(errno.ENOSPC, "No space left on device", "a", None, "b"), "a -> b: No space left on device"),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "a"), ""),
        (OSError(errno.EACCES, "Permission denied"), ""),
        (ConnectionResetError(errno.ECONNRESET, "Connection reset by peer", "a"), ""),
    ],
)
def test_only_errors_that_a_user_can_fix_become_messages(error, message):
    assert refused_by_machine(error) == message


def test_commands_and_ranks_report_them_without_a_traceback(tmp_path):
    """A folder would have to be created below a file."""
    (tmp_path / "file").touch()
    done = CliRunner().invoke(app, ["prepare", "arithmetic", str(tmp_path / "file/out"), "--num-train", "1"])
    assert (done.exit_code, done.stderr) == (2, f"error: {tmp_path}/file/out: Not a directory\n")
    done = subprocess.run(
        [
            sys.executable, "-m", "nemo_minordpo.train", f"pretrained_checkpoint.restore_from_path={'x' * 300}",
            "model.data.data_prefix.train=[x]", f"exp_manager.explicit_log_dir={tmp_path}/file/run",
            "model.dpo.ref_policy_kl_penalty=0.1",
        ],
        capture_output=True, text=True,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (2, f"error: {'x' * 300}: File name too long\n")
