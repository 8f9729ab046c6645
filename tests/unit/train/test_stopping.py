"""Signals, the time limit, and ranks that hang."""

import os
import re
import signal
import subprocess
import sys

import pytest
import torch

from nemo_minordpo.train.folder.stopping import StallDetector, StopRequest


@pytest.fixture
def one_rank(monkeypatch, tmp_path):
    """A process group of this process only; restores its signal handlers."""
    monkeypatch.setattr(torch.cuda, "current_device", lambda: "cpu")
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGUSR1, signal.SIGTERM)}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)
    torch.distributed.destroy_process_group()


def test_no_request_no_stop(one_rank):
    assert StopRequest(max_seconds=None).agreed() == ""
    assert StopRequest(max_seconds=60).agreed() == ""


def test_the_time_limit_is_a_reason_to_stop(one_rank):
    assert StopRequest(max_seconds=0).agreed().startswith("time limit reached")


@pytest.mark.parametrize("name", ["SIGUSR1", "SIGTERM"])
def test_repeated_signals_are_one_request(one_rank, name):
    request = StopRequest(max_seconds=None)
    request.listen()
    for _ in range(3):
        os.kill(os.getpid(), getattr(signal, name))
    assert request.agreed() == name


def test_the_reason_with_the_highest_priority_counts(one_rank):
    request = StopRequest(max_seconds=0)
    request.listen()
    os.kill(os.getpid(), signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGUSR1)
    assert request.agreed() == "SIGTERM"


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def stalls(clock, monkeypatch):
    """A detector with a limit of 10 s, without its thread."""
    stalls = StallDetector(max_seconds=10, on_stall=lambda reason: None, clock=clock)
    monkeypatch.setattr(stalls._thread, "start", lambda: None)
    return stalls


def test_progress_prevents_a_stall(stalls, clock):
    for step in range(8):
        stalls.beat(f"step {step}")
        clock.now += 10.0
        assert stalls.stalled() == ""


def test_a_stall_names_the_stage(stalls, clock):
    stalls.beat("step 6")
    stalls.beat("step 7")
    clock.now += 10.5
    assert stalls.stalled().startswith("nothing moved for 10 s in step 7: another rank is frozen, cut off or dead")
    stalls.beat("step 8")
    assert stalls.stalled() == ""


def test_no_stall_before_the_first_step_or_after_the_last(stalls, clock):
    clock.now += 1e6
    assert stalls.stalled() == ""
    stalls.beat("the last step")
    stalls.end()
    clock.now += 1e6
    assert stalls.stalled() == ""


def test_a_stalled_process_exits():
    script = (
        "import sys, time\nfrom nemo_minordpo.train.folder.stopping import StallDetector\n"
        "say = lambda reason: sys.stdout.write(reason) and sys.stdout.flush()\n"
        "StallDetector(max_seconds=1, on_stall=say).beat('step 7'); time.sleep(600)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert re.match(r"nothing moved for \d+ s in step 7: another rank is frozen", done.stdout)
    assert "most recent call first" in done.stderr


@pytest.mark.parametrize("name", ["SIGUSR1", "SIGTERM"])
@pytest.mark.parametrize("spared", [True, False])
def test_helper_processes_survive_signals(name, spared):
    """In a separate process, since the first helper is the critical one; started as Megatron starts its helpers."""
    script = (
        "import multiprocessing, os, signal\nfrom contextlib import nullcontext\n"
        "from nemo_minordpo.train.folder.stopping import signals_kept_from_children\n"
        "if __name__ == '__main__':\n"
        f"    with {'signals_kept_from_children' if spared else 'nullcontext'}():\n"
        "        manager = multiprocessing.get_context('spawn').Manager()\n"
        "    queue = manager.Queue()\n"
        f"    os.kill(manager._process.pid, signal.{name})\n"
        "    try:\n"
        "        queue.put('alive')\n"
        "        print(queue.get(), flush=True)\n"
        "    except (OSError, EOFError):\n"
        "        print('dead', flush=True)\n"
        "    manager._process.kill()\n    os._exit(0)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.stdout == ("alive\n" if spared else "dead\n"), done.stderr


def test_the_thread_ends_with_the_run():
    """A process that trains several times must not gather threads: it forks to write checkpoints."""
    stalls = StallDetector(max_seconds=600, on_stall=lambda reason: None)
    stalls.beat("a step")
    assert stalls._thread.is_alive()
    stalls.end()
    stalls._thread.join(timeout=60)
    assert not stalls._thread.is_alive()


def test_without_a_limit_there_is_no_thread():
    stalls = StallDetector(max_seconds=None, on_stall=lambda reason: None)
    stalls.beat("a step")
    assert not stalls._thread.is_alive()
