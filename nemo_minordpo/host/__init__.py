"""Stand-ins for whatever this machine lacks of CUDA, Apex and Transformer Engine.

Call ``prepare()`` before the first import of NeMo or Megatron, in every process. On a machine with CUDA, Apex and
Transformer Engine it only installs the layers of layers/ in NeMo and lets NeMo read tokenizers written by transformers
5. Each stand-in names the upstream versions that it was written for and fails at once if the code that it replaces is
gone.
"""

import importlib.util
import os
import warnings
from dataclasses import dataclass


@dataclass(frozen=True)
class StandIn:
    """Something that this machine lacks, and its replacement."""

    lacks: str
    instead: str


_active: list[StandIn] | None = None


def prepare(framework: str = "aligner") -> list[StandIn]:
    """Make a framework importable and runnable here. Safe to call again, for the same one.

    Args:
        framework: `aligner`: NeMo 2.1 - 2.4 with Megatron-Core 0.10 - 0.12; `bridge`: Megatron-Bridge 0.6 with
            Megatron-Core 0.19.

    Returns:
        The stand-ins that are active in this process; empty on a full GPU installation.
    """
    global _active
    if _active is None:
        _active = _install_bridge() if framework == "bridge" else _install()
    return list(_active)


def has_cuda() -> bool:
    import torch

    return torch.cuda.is_available()


def has_apex() -> bool:
    """Apex with its CUDA extensions, as in NVIDIA's containers (`apex` on PyPI is an unrelated project)."""
    return importlib.util.find_spec("amp_C") is not None and importlib.util.find_spec("apex") is not None


def has_transformer_engine() -> bool:
    return importlib.util.find_spec("transformer_engine") is not None and has_cuda()


def _install() -> list[StandIn]:
    _quiet_import_noise()
    # NeMo matches it against a pattern and raises TypeError if it is unset, as it is outside NVIDIA's containers.
    os.environ.setdefault("NVIDIA_PYTORCH_VERSION", "none")
    # checked before anything is installed: the stand-in for Apex would be found, too
    here = {"cuda": has_cuda(), "apex": has_apex(), "transformer_engine": has_transformer_engine()}
    active = _without_cuda()
    if not here["apex"]:
        from nemo_minordpo.host import apex

        active.append(apex.install())
    from nemo_minordpo.host import upstream

    active += upstream.install(**here)
    # must come last: it imports NeMo's GPT model
    from nemo_minordpo.layers import specs

    specs.install(local_norm=None if here["transformer_engine"] else upstream.local_norm())
    return active


def _install_bridge() -> list[StandIn]:
    _quiet_import_noise()
    active = _without_cuda()
    from nemo_minordpo.host import bridge

    return active + bridge.install(cuda=has_cuda(), transformer_engine=has_transformer_engine())


def _without_cuda() -> list[StandIn]:
    """CUDA's calls and fast matrix products, on a machine without a GPU."""
    if has_cuda():
        return []
    from nemo_minordpo.host import cuda, matmul

    return [cuda.install(), *matmul.install()]


def _quiet_import_noise() -> None:
    """Silence the hundreds of import warnings of NeMo's dependencies, none of which a user can act on."""
    for category in (DeprecationWarning, SyntaxWarning, FutureWarning):
        warnings.filterwarnings("ignore", category=category)
    # these warn in every process; doctor reports the same once
    for module in ("modelopt", "jieba", "megatron.core", "torch.cuda", "requests"):
        warnings.filterwarnings("ignore", category=UserWarning, module=module)
