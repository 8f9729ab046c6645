"""What this machine lacks of CUDA, Apex and Transformer Engine, and what stands in for it.

``prepare()`` is called before the first import of NeMo, in every process. On a machine with CUDA, Apex and
Transformer Engine it puts the layers of layers/ within NeMo's reach, lets NeMo read tokenizers that transformers 5
wrote, and changes nothing else. Each stand-in names the upstream versions that it was written for, and fails at once
when what it replaces is not there any more.
"""

import importlib.util
import os
import warnings
from dataclasses import dataclass


@dataclass(frozen=True)
class StandIn:
    """One thing that this machine lacks and what takes its place."""

    lacks: str
    instead: str


_active: list[StandIn] | None = None


def prepare() -> list[StandIn]:
    """Make NeMo 2.1 - 2.4 and Megatron-Core 0.10 - 0.12 importable and runnable here. Safe to call again.

    Returns:
        The stand-ins that are active in this process; empty on a full GPU installation.
    """
    global _active
    if _active is None:
        _active = _install()
    return list(_active)


def has_cuda() -> bool:
    import torch

    return torch.cuda.is_available()


def has_apex() -> bool:
    """Apex with its CUDA extensions, as NVIDIA's containers carry it (PyPI's `apex` is another project)."""
    return importlib.util.find_spec("amp_C") is not None and importlib.util.find_spec("apex") is not None


def has_transformer_engine() -> bool:
    return importlib.util.find_spec("transformer_engine") is not None and has_cuda()


def _install() -> list[StandIn]:
    _quiet_import_noise()
    # NeMo compares it with a pattern and raises TypeError when it is unset, as it is outside NVIDIA's containers.
    os.environ.setdefault("NVIDIA_PYTORCH_VERSION", "none")
    # asked before anything is installed: the stand-in for Apex can be imported, too
    here = {"cuda": has_cuda(), "apex": has_apex(), "transformer_engine": has_transformer_engine()}
    active = []
    if not here["cuda"]:
        from nemo_minordpo.host import cuda, matmul

        active.append(cuda.install())
        active.extend(matmul.install())
    if not here["apex"]:
        from nemo_minordpo.host import apex

        active.append(apex.install())
    from nemo_minordpo.host import upstream

    active += upstream.install(**here)
    # NeMo's GPT model can be imported only now
    from nemo_minordpo.layers import specs

    specs.install(local_norm=None if here["transformer_engine"] else upstream.local_norm())
    return active


def _quiet_import_noise() -> None:
    """Hundreds of lines that NeMo's dependencies print at import and that no user can act upon."""
    for category in (DeprecationWarning, SyntaxWarning, FutureWarning):
        warnings.filterwarnings("ignore", category=category)
    # doctor says once what these repeat in every process
    for module in ("modelopt", "jieba", "megatron.core", "torch.cuda", "requests"):
        warnings.filterwarnings("ignore", category=UserWarning, module=module)
