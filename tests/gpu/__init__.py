"""`make gpu-check`: whether this machine's stack computes what it should, and how fast; on CPUs, the part that is left.

A check is a function of a folder that all checks share; `schedule` says which run in order and which side by side. It
returns its figure in words. `NotRun` says what it lacks; any other exception is a failure.
"""

import importlib.util
import math
from collections.abc import Mapping

MEASURED = "measured"  # folder, in that of the checks, whose JSON goes into the file of results


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


def bounded(
    what: str, error: float, bound: float, *, ceiling: float = math.inf, controls: Mapping[str, float] | None = None
) -> str:
    """The figure in words.

    A bound that follows from another error on the same device says nothing where both are wrong: a ceiling is fixed
    beforehand. A control is the error of a result that is wrong on purpose: it must be above the bound.

    Args:
        what: is measured.
        error: found.
        bound: of it, such as a multiple of a naive form's error.
        ceiling: of the bound.
        controls: errors by name of the control, measured as `error` is, but not by what is checked.

    Raises:
        AssertionError: the error is above the bound, or a control is not; or one of them is no number.
    """
    limit = min(bound, ceiling)  # stays no number where the bound is none: min() keeps its first then
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
