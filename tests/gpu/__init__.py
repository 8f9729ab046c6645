"""`make gpu-check`: whether this machine's stack computes what it should, and how fast; on CPUs, the part that is left.

A check is a function of a folder that all checks share, in the order of the list in `__main__`. It returns its figure
in words. `NotRun` says what it lacks; any other exception is a failure.
"""

import importlib.util


class NotRun(Exception):
    """The check could not be made here; says what is missing."""


def need_cuda() -> None:
    import torch

    if not torch.cuda.is_available():
        raise NotRun("no CUDA device")


def need_transformer_engine() -> None:
    need_cuda()
    if importlib.util.find_spec("transformer_engine") is None:
        raise NotRun("Transformer Engine is not installed")


def need_nemo() -> None:
    modules = {"nemo": "NeMo", "megatron": "Megatron-Core", "nemo_aligner": "NeMo-Aligner"}
    missing = [name for module, name in modules.items() if importlib.util.find_spec(module) is None]
    if missing:
        raise NotRun(f"{', '.join(missing)} not installed")


def need_precision(name: str) -> None:
    """What `precision=NAME` runs on."""
    if name == "fp8_hybrid":
        need_transformer_engine()
    elif name != "fp32":
        need_cuda()


def bounded(what: str, error: float, bound: float) -> str:
    """The figure in words.

    Raises:
        AssertionError: the error is above the bound, or no number.
    """
    words = f"{what} {error:.1e} (bound {bound:.1e})"
    if not error <= bound:
        raise AssertionError(words)
    return words
