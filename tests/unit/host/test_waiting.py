import os
import subprocess
import sys

import pytest

from nemo_minordpo.host.waiting import wait_briefly


@pytest.mark.parametrize("command", [["nemo_minordpo", "train"], ["nemo_minordpo.train"]])
def test_set_before_torch_is_loaded(command):
    """OpenMP prints its settings when torch loads it."""
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    run = subprocess.run(
        [sys.executable, "-m", *command, "nothing=1"],
        env={**environment, "OMP_DISPLAY_ENV": "verbose"}, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert run.returncode == 2, run.stderr
    assert "GOMP_SPINCOUNT = '10000'" in run.stderr


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, {"GOMP_SPINCOUNT": "10000", "KMP_BLOCKTIME": "0"}),
        ({"KMP_BLOCKTIME": "200"}, {"GOMP_SPINCOUNT": "10000", "KMP_BLOCKTIME": "200"}),
        ({"OMP_WAIT_POLICY": "active"}, {"OMP_WAIT_POLICY": "active"}),
    ],
)
def test_the_users_own_settings_win(monkeypatch, given, expected):
    monkeypatch.setattr(os, "environ", dict(given))
    wait_briefly()
    assert os.environ == expected
