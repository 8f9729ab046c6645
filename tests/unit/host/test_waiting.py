import os

from nemo_minordpo.host.waiting import sleep_while_waiting


def test_the_users_own_settings_win(monkeypatch):
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    monkeypatch.setenv("KMP_BLOCKTIME", "200")
    sleep_while_waiting()
    assert (os.environ["OMP_WAIT_POLICY"], os.environ["KMP_BLOCKTIME"]) == ("passive", "200")
