"""Signals, the clock, and ranks that wait for ever."""

import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from nemo_minordpo.train.stopping import StallWatch, StopRequest


@pytest.fixture
def one_rank(monkeypatch, tmp_path):
    """A process group of this process alone, and its signals as they were."""
    monkeypatch.setattr(torch.cuda, "current_device", lambda: "cpu")
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGUSR1, signal.SIGTERM)}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)
    torch.distributed.destroy_process_group()


def test_nothing_asked(one_rank):
    assert StopRequest(max_seconds=None).agreed() == ""
    assert StopRequest(max_seconds=60).agreed() == ""


def test_the_clock(one_rank):
    assert StopRequest(max_seconds=0).agreed().startswith("time limit reached")


@pytest.mark.parametrize("name", ["SIGUSR1", "SIGTERM"])
def test_a_signal_however_often(one_rank, name):
    request = StopRequest(max_seconds=None)
    request.listen()
    for _ in range(3):
        os.kill(os.getpid(), getattr(signal, name))
    assert request.agreed() == name


def test_the_weightier_reason_counts(one_rank):
    request = StopRequest(max_seconds=0)
    request.listen()
    os.kill(os.getpid(), signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGUSR1)
    assert request.agreed() == "SIGTERM"


@pytest.mark.parametrize(
    ("moves", "code", "said"),
    [
        ("for _ in range(8): watch.beat('a step'); time.sleep(0.2)", 0, ""),
        ("watch.beat('step 7'); time.sleep(30)", 1, "nothing moved for 1 s in step 7: another rank is frozen"),
        ("watch.beat('step 7'); watch.rest(); time.sleep(1.8)", 0, ""),
        ("time.sleep(1.8)", 0, ""),  # what comes before the first step has no limit
    ],
)
def test_a_process_in_which_nothing_moves_ends(moves, code, said):
    script = (
        "import sys, time\nfrom nemo_minordpo.train.stopping import StallWatch\n"
        "watch = StallWatch(max_seconds=1, on_stall=lambda reason: sys.stdout.write(reason) and sys.stdout.flush())\n"
        + moves
    )
    started = time.monotonic()
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout[: len(said)]) == (code, said)
    assert time.monotonic() - started < 25
    assert ("most recent call first" in done.stderr) == bool(code)


@pytest.mark.parametrize("name", ["SIGUSR1", "SIGTERM"])
@pytest.mark.parametrize("spared", [True, False])
def test_helpers_live_through_signals(name, spared):
    """In a process of its own: the first helper is the one that counts. As Megatron starts its own."""
    script = (
        "import multiprocessing, os, signal, sys, time\nfrom contextlib import nullcontext\n"
        "from nemo_minordpo.train.stopping import signals_kept_from_children\n"
        "if __name__ == '__main__':\n"
        f"    with {'signals_kept_from_children' if spared else 'nullcontext'}():\n"
        "        manager = multiprocessing.get_context('spawn').Manager()\n"
        "    queue = manager.Queue()\n"
        f"    os.kill(manager._process.pid, signal.{name})\n"
        "    time.sleep(0.3)\n"
        "    print('alive' if manager._process.is_alive() else 'dead', flush=True)\n"
        "    manager._process.kill()\n    os._exit(0)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.stdout == ("alive\n" if spared else "dead\n"), done.stderr


def test_no_limit_no_thread():
    watch = StallWatch(max_seconds=None, on_stall=lambda reason: None)
    watch.beat("a step")
    assert not watch._thread.is_alive()
