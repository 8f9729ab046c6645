"""Checkpoints are written without forks: a forked child may wait forever for a lock that another thread held."""

import os
import subprocess
import sys

_SCRIPT = """
import os, queue
from nemo_minordpo import host
host.prepare()
import torch
from megatron.core.dist_checkpointing.strategies import async_utils, filesystem_async

def refuse():
    raise AssertionError("forked")

os.fork = refuse
torch.cuda.current_device = lambda: torch.device("cpu")
torch.distributed.init_process_group("gloo", init_method="file://" + os.path.abspath("group"), rank=0, world_size=1)
found = queue.Queue()
buckets = [(f"file_{number}", f"file_{number}", ([], [])) for number in range(2)]
caller = async_utils.DistributedAsyncCaller()
caller.schedule_async_call(filesystem_async.FileSystemWriterAsync.write_preloaded_data_multiproc, (buckets, found))
assert caller.is_current_async_call_done(blocking=True)
assert found.get(timeout=10) == {0: [], 1: []}, found
print(sorted(name for name in os.listdir() if name.startswith("file")))
"""


def test_no_process_is_forked(tmp_path):
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    run = subprocess.run(
        [sys.executable, "-c", _SCRIPT], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=200
    )
    assert run.returncode == 0, run.stderr[-3000:]
    assert run.stdout.splitlines()[-1] == "['file_0', 'file_1']"
