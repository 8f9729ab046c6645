"""`make gpu-check`: check that this machine's stack computes correct results, and how fast; on CPUs, whatever can run.

A check is a function that takes a folder shared by all checks and returns its result as text. It raises `NotRun` with
the reason if it cannot run; any other exception is a failure. `schedule` defines the order and what runs in parallel.
"""

import importlib.util
import math
from collections.abc import Mapping

MEASURED = "measured"  # subfolder of JSON files that are included in the results


class NotRun(Exception):
    """The check cannot run here; the message says what is missing."""


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
    """Require what `precision=NAME` needs."""
    if name == "fp8_hybrid":
        need_transformer_engine()
    elif name != "fp32":
        need_cuda()


def bounded(
    what: str, error: float, bound: float, *, ceiling: float = math.inf, controls: Mapping[str, float] | None = None
) -> str:
    """Check an error against its bound; return both as text.

    A bound derived from another error on the same device is meaningless if both are wrong, so there is also a fixed
    ceiling. A control is the error of a deliberately wrong result, and must exceed the bound.

    Args:
        what: name of the measured quantity.
        error: the measured error.
        bound: its bound, such as a multiple of a naive implementation's error.
        ceiling: maximum for the bound.
        controls: errors of the controls by name, measured like `error`, but not by the code under test.

    Raises:
        AssertionError: the error is above the bound, a control is not, or one of them is NaN.
    """
    limit = min(bound, ceiling)  # NaN if the bound is NaN: min() then returns its first argument
    controls = controls or {}
    nearest = min(controls, key=controls.__getitem__, default=None)
    control = "" if nearest is None else f"; control: {nearest} {controls[nearest]:.1e}"
    words = f"{what} {error:.1e} (bound {limit:.1e}{control})"
    if not error <= limit:
        raise AssertionError(words)
    passing = [f"{name} {value:.1e}" for name, value in controls.items() if not value > limit]
    if passing:
        raise AssertionError(f"{what} the bound {limit:.1e} lets a control pass: {', '.join(passing)}")
    return words
