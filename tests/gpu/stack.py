"""The stack that the checks run on."""

import json
import os
import platform
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

from nemo_minordpo import host
from nemo_minordpo.provenance import installed_versions, source_commit
from tests.gpu import need_nemo

FILE = "stack.json"
_OF_DRIVER = ("name", "driver_version", "memory.total", "power.limit", "clocks.max.sm")
# a machine may have several copies; whether Transformer Engine works depends on which one is loaded
_LIBRARIES = r"/lib(?:nvrtc|cublas|cublasLt|cudnn|nccl|cudart)\.so[.\d]*"


def stack(folder: Path) -> str:
    """Record versions and device in the results; then check that NeMo, Megatron-Core and Aligner import."""
    found: dict[str, Any] = {"transformer_engine": None}
    try:
        if host.has_transformer_engine():
            # first, and by its torch module: if this import fails, both Transformer Engine's own package and NeMo
            # silently continue without it
            import transformer_engine.pytorch  # noqa: F401

            found["transformer_engine"] = installed_versions().get("transformer_engine", "of no known version")
    except Exception as error:
        found["transformer_engine"] = f"{type(error).__name__}: {error}"
        raise
    finally:
        found |= _machine() | _device()
        (folder / FILE).write_text(json.dumps(found))
    need_nemo()
    found["stand_ins"] = _import_nemo()
    (folder / FILE).write_text(json.dumps(found))
    gpu = f"{found['device']}, {found['memory_gib']:.0f} GiB, driver {found['driver']}" if found["device"] else "CPU"
    return (
        f"{gpu}; {found['cores']} cores; Transformer Engine {found['transformer_engine']}; "
        f"{len(found['stand_ins'])} stand-ins for what is missing"
    )


def _import_nemo() -> list[str]:
    """Import NeMo; return the stand-ins for what is missing."""
    stand_ins = host.prepare()
    import nemo.collections.nlp.models.language_modeling.megatron_gpt_model as nemo_gpt

    from nemo_minordpo.train.hosts.aligner import minordpo_model  # noqa: F401  imports all three

    if host.has_transformer_engine() and not nemo_gpt.HAVE_TE:
        raise AssertionError("Transformer Engine imports, but NeMo does not find what it wants of it")
    return [f"{item.lacks}: {item.instead}" for item in stand_ins]


def _machine() -> dict[str, Any]:
    return {
        "python": platform.python_version(),
        "versions": installed_versions(),
        "commit": source_commit(),
        "cores": len(os.sched_getaffinity(0)),
        "ram_gib": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30,
        "compiler": shutil.which("c++"),
        "environment": {name: value for name, value in os.environ.items() if name.startswith(("NVTE_", "CUDA_"))},
        # the copies loaded by earlier imports
        "libraries": sorted(set(re.findall(rf"\S*{_LIBRARIES}", Path("/proc/self/maps").read_text()))),
    }


def _device() -> dict[str, Any]:
    import torch

    if not torch.cuda.is_available():
        return {"device": None, "cuda": None}
    properties = torch.cuda.get_device_properties(0)
    return {
        "device": properties.name,
        "cuda": torch.version.cuda,
        "compute_capability": f"{properties.major}.{properties.minor}",
        "memory_gib": properties.total_memory / 2**30,
        **_driver(),
    }


def _driver() -> dict[str, Any]:
    """Output of nvidia-smi, one line per GPU."""
    if shutil.which("nvidia-smi") is None:
        return {"driver": "unknown", "gpus": []}
    command = ["nvidia-smi", f"--query-gpu={','.join(_OF_DRIVER)}", "--format=csv,noheader"]
    said = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    gpus = [dict(zip(_OF_DRIVER, line.split(", "), strict=False)) for line in said.splitlines()]
    return {"driver": gpus[0].get("driver_version", "unknown") if gpus else "unknown", "gpus": gpus}
