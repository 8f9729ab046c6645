"""What the checks run on."""

import json
import platform
from pathlib import Path

import torch

from nemo_minordpo import host
from nemo_minordpo.provenance import installed_versions, source_commit
from tests.gpu import need_nemo

FILE = "stack.json"


def stack(folder: Path) -> str:
    """Versions and device, kept for the file of results; then whether NeMo, Megatron-Core and Aligner import."""
    cuda = torch.cuda.is_available()
    found = {
        "python": platform.python_version(),
        "versions": installed_versions(),
        "commit": source_commit(),
        "cuda": torch.version.cuda if cuda else None,
        "device": torch.cuda.get_device_name() if cuda else None,
    }
    (folder / FILE).write_text(json.dumps(found))
    need_nemo()
    stand_ins = host.prepare()
    from nemo_minordpo.train import model  # noqa: F401  imports all three, and Transformer Engine where it is

    found["stand_ins"] = [f"{item.lacks}: {item.instead}" for item in stand_ins]
    (folder / FILE).write_text(json.dumps(found))
    return f"{found['device'] or 'CPU'}; {len(stand_ins)} stand-ins for what is missing"
