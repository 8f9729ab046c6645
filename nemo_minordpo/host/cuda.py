"""CUDA calls on a machine without a GPU: NeMo, Megatron and Aligner make them unconditionally.

Only calls that would raise are mapped to the CPU; `torch.cuda.is_available()` and `device_count()` stay truthful.
"""

import contextlib
import functools
from typing import Any

import torch

from nemo_minordpo.host import StandIn, heap

# Factories that upstream calls with device="cuda" or device=torch.cuda.current_device().
_FACTORIES = ("arange", "as_tensor", "empty", "full", "ones", "tensor", "zeros")
_CPU = torch.device("cpu")


class _Event:
    """A no-op event, as :class:`_Stream`."""

    def synchronize(self) -> None: ...


class _Stream:
    """A no-op stream: on a CPU everything already runs in order."""

    def __init__(self, *args: Any, **kwargs: Any) -> None: ...
    def synchronize(self) -> None: ...
    def wait_stream(self, stream: Any) -> None: ...
    def record_event(self) -> _Event:
        return _Event()


def install() -> StandIn:
    """Map CUDA calls to the CPU (torch 2.5 - 2.13)."""
    for name in _FACTORIES:
        setattr(torch, name, _on_cpu(getattr(torch, name)))
    cuda: Any = torch.cuda
    cuda.current_device = lambda: _CPU
    cuda.FloatTensor, cuda.IntTensor = torch.FloatTensor, torch.IntTensor
    cuda.Stream = _Stream
    cuda.current_stream = lambda device=None: _Stream()
    cuda.stream = lambda stream: contextlib.nullcontext()
    for name in ("set_device", "synchronize", "empty_cache"):
        setattr(cuda, name, lambda *args, **kwargs: None)
    cuda.get_rng_state = lambda device=None: torch.get_rng_state()
    cuda.set_rng_state = lambda state, device=None: torch.set_rng_state(state)
    cuda.manual_seed = torch.manual_seed
    torch.Tensor.cuda = lambda self, *args, **kwargs: self  # type: ignore[method-assign]
    torch.nn.Module.cuda = lambda self, device=None: self  # type: ignore[method-assign,assignment]
    name_types_as_on_cuda()
    heap.keep_freed_memory()
    return StandIn("a CUDA device", "CUDA calls are mapped to the CPU; collectives run over gloo")


def name_types_as_on_cuda() -> None:
    """`tensor.type()` says "torch.cuda.FloatTensor": optimizers with main weights sort the weights by such names."""
    original: Any = torch.Tensor.type

    def type_of(self: Any, *args: Any, **kwargs: Any) -> Any:
        found = original(self, *args, **kwargs)
        # under a TorchFunctionMode, as in the rehearsal of a GPU, this function is the original's implementation, too
        is_named = args or kwargs or found.startswith("torch.cuda.")
        return found if is_named else found.replace("torch.", "torch.cuda.", 1)

    torch.Tensor.type = type_of  # type: ignore[method-assign,assignment]


def _on_cpu(factory: Any) -> Any:
    @functools.wraps(factory)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        device = kwargs.get("device")
        if device is not None and torch.device(device).type == "cuda":
            kwargs["device"] = _CPU
        return factory(*args, **kwargs)

    return wrapper
