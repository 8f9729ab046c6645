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
    import nemo.collections.nlp.models.language_modeling.megatron_gpt_model as nemo_gpt

    from nemo_minordpo.train import model  # noqa: F401  imports all three

    if host.has_transformer_engine():
        import transformer_engine.pytorch  # noqa: F401  NeMo goes on without it where this fails

        if not nemo_gpt.HAVE_TE:
            raise AssertionError("Transformer Engine imports, but NeMo does not find what it wants of it")
    found["stand_ins"] = [f"{item.lacks}: {item.instead}" for item in stand_ins]
    (folder / FILE).write_text(json.dumps(found))
    return f"{found['device'] or 'CPU'}; {len(stand_ins)} stand-ins for what is missing"
