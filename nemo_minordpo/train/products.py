"""Matrix products of a run on CPUs: the same library on all ranks and in all attempts, because libraries round
differently, and a resumed run must repeat the uninterrupted one bit for bit.
"""

import json
from pathlib import Path

import torch

from nemo_minordpo import file_names
from nemo_minordpo.checked_json import read_json_object
from nemo_minordpo.files import write_text
from nemo_minordpo.host import matmul
from nemo_minordpo.host.processor import processor_name
from nemo_minordpo.train.folder.run_folder import RunFolder, rank_of_process


def agree_on_products(folder: RunFolder) -> None:
    """Make every rank use the first rank's choice (host/matmul.py), recorded by the first attempt. Collective."""
    chosen = [_of_run(folder.path / file_names.PRODUCTS) if rank_of_process() == 0 else None]
    torch.distributed.broadcast_object_list(chosen)
    assert chosen[0] is not None
    matmul.use(chosen[0])


def _of_run(path: Path) -> list[str]:
    """The recorded choice; on another processor, where nothing is repeated bit for bit anyway, a new one."""
    here = {"processor": processor_name(), "replaced": matmul.replaced()}
    if path.exists() and (recorded := read_json_object(path)).get("processor") == here["processor"]:
        return recorded["replaced"]
    write_text(path, json.dumps(here) + "\n")
    return matmul.replaced()
