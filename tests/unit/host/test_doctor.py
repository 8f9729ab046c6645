"""`minordpo doctor` says which hosts can train here, and prepares only one of them."""

import pytest

from nemo_minordpo.host import doctor

ALIGNER = {"nemo_toolkit": "2.1.0", "megatron-core": "0.10.0", "nemo-aligner": "0.7.0"}
BRIDGE = {"megatron-core": "0.19.2", "megatron-bridge": "0.6.2"}


@pytest.mark.parametrize(
    ("installed", "said", "prepared"),
    [
        (ALIGNER, "minordpo train can run with host=aligner", ["aligner"]),
        (BRIDGE, "minordpo train can run with host=bridge", ["bridge"]),
        ({**ALIGNER, **BRIDGE}, "minordpo train can run with host=aligner or host=bridge", ["aligner"]),
        ({"megatron-core": "0.19.2"}, "nemo_toolkit, nemo-aligner missing; run `pip install '.[cpu]'`", []),
    ],
)
def test_the_hosts_that_can_train(monkeypatch, capsys, installed, said, prepared):
    calls = []
    monkeypatch.setattr(doctor, "installed_versions", lambda: installed)
    monkeypatch.setattr(doctor.host, "prepare", lambda framework: calls.append(framework) or [])
    monkeypatch.setenv("COLUMNS", "200")
    assert doctor.report() is bool(prepared)
    assert said in capsys.readouterr().out
    assert calls == prepared
