"""CUDA emulated on the CPU: one GPU with the sizes of an H100; its tensors and random states are the CPU's."""

import contextlib
import functools
import importlib.machinery
import types
from collections.abc import Callable
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from nemo_minordpo.host.cuda import name_types_as_on_cuda
from tests.gpu.rehearsal import attention

_CPU = torch.device("cpu")
_MEMORY = 80 << 30
_PROPERTIES = types.SimpleNamespace(
    name="an H100 played by the CPU", major=9, minor=0, multi_processor_count=132, total_memory=_MEMORY,
    L2_cache_size=50 << 20, warp_size=32, shared_memory_per_block_optin=232448, uuid="none",
)  # fmt: skip


def install() -> None:
    """Call before anything imports NeMo, Megatron-Core or Transformer Engine."""
    _OnCpu().__enter__()
    torch.Tensor.is_cuda = property(lambda self: True)
    for name, instead in _cuda_calls().items():
        for module in (torch.cuda, torch.cuda.random):
            if module is torch.cuda or hasattr(module, name):
                setattr(module, name, instead)
    torch.cuda.default_generators = (torch.default_generator,)
    name_types_as_on_cuda()
    torch.load = _loading_to_cpu(torch.load)
    # not in the mode, which is off inside the functions that it calls, e.g. a backward pass
    torch.mm, torch.addmm = map(_with_dtype_of_result, (torch.mm, torch.addmm))
    # what is compiled for a GPU runs uncompiled
    torch.compile = lambda function=None, **options: function if function is not None else lambda given: given
    _collectives_over_gloo()
    attention.install()
    _kernels_in_python()


class _OnCpu(TorchFunctionMode):
    """Map every CUDA device to the CPU."""

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = dict(kwargs or {})
        kwargs.pop("pin_memory", None)
        if _is_cuda(kwargs.get("device")):
            kwargs["device"] = _CPU
        if func is torch.Tensor.to:
            args = (args[0], *(_CPU if _is_cuda(given) else given for given in args[1:]))
        elif func is torch.device and isinstance(args[0], int):
            args = ("cuda", *args)  # torch without CUDA rejects device numbers
        elif func in (torch.Tensor.cuda, torch.Tensor.pin_memory):
            return args[0]
        return func(*args, **kwargs)


def _is_cuda(device: Any) -> bool:
    if isinstance(device, bool) or device is None:
        return False
    return isinstance(device, int) or (isinstance(device, str | torch.device) and torch.device(device).type == "cuda")


def _with_dtype_of_result(product: Callable[..., Any]) -> Callable[..., Any]:
    """Products of 16-bit numbers with a float32 result, which only CUDA supports."""

    @functools.wraps(product)
    def wrapper(*operands: torch.Tensor, out_dtype: torch.dtype | None = None, **more: Any) -> torch.Tensor:
        if out_dtype is None:
            return product(*operands, **more)
        kinds = {tensor.dtype for tensor in operands[-2:]}
        if len(kinds) != 1 or not kinds <= {torch.bfloat16, torch.float16}:
            raise TypeError(f"a result of another dtype wants factors of one 16-bit dtype, not {kinds}")
        return product(*(tensor.to(out_dtype) for tensor in operands), **more)

    return wrapper


class _Event:
    def __init__(self, *args: Any, **kwargs: Any) -> None: ...
    def record(self, *args: Any) -> None: ...
    def wait(self, *args: Any) -> None: ...
    def synchronize(self) -> None: ...
    def query(self) -> bool:
        return True

    def elapsed_time(self, other: Any) -> float:
        return 1.0


class _Stream:
    cuda_stream = 0

    def __init__(self, *args: Any, **kwargs: Any) -> None: ...
    def synchronize(self) -> None: ...
    def wait_stream(self, stream: Any) -> None: ...
    def wait_event(self, event: Any) -> None: ...
    def record_event(self, event: Any = None) -> _Event:
        return _Event()

    def __enter__(self) -> "_Stream":
        return self

    def __exit__(self, *reason: Any) -> None: ...


def _cuda_calls() -> dict[str, Any]:
    """Replacements for names in `torch.cuda`."""

    def always(value: Any) -> Callable[..., Any]:
        return lambda *args, **kwargs: value

    tensors = {f"{kind}Tensor": getattr(torch, f"{kind}Tensor") for kind in (
        "BFloat16", "Byte", "Double", "Float", "Half", "Int", "Long")}  # fmt: skip
    nothing = (
        "empty_cache", "init", "ipc_collect", "manual_seed_all", "reset_peak_memory_stats", "set_device", "set_stream",
        "synchronize", "_lazy_init",
    )  # fmt: skip
    return {
        **tensors,
        **{name: always(None) for name in nothing},
        "is_available": always(True), "is_initialized": always(True), "is_bf16_supported": always(True),
        "is_current_stream_capturing": always(False), "can_device_access_peer": always(False),
        "device_count": always(1), "current_device": always(0), "get_device_name": always(_PROPERTIES.name),
        "get_device_capability": always((9, 0)), "get_device_properties": always(_PROPERTIES),
        "memory_allocated": always(0), "memory_reserved": always(0), "memory_stats": always({}),
        "max_memory_allocated": always(1 << 30), "max_memory_reserved": always(1 << 30),
        "mem_get_info": always((_MEMORY, _MEMORY)),
        "Stream": _Stream, "Event": _Event, "current_stream": always(_Stream()), "default_stream": always(_Stream()),
        "stream": always(contextlib.nullcontext()), "device": always(contextlib.nullcontext()),
        "get_rng_state": lambda device=None: torch.get_rng_state(),
        "set_rng_state": lambda state, device=None: torch.set_rng_state(state),
        "manual_seed": lambda seed: torch.default_generator.manual_seed(int(seed)),
    }  # fmt: skip


def _loading_to_cpu(load: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(load)
    def loads(file: Any, map_location: Any = None, **more: Any) -> Any:
        return load(file, map_location=_CPU if _is_cuda(map_location) else map_location, **more)

    return loads


def _collectives_over_gloo() -> None:
    import torch.distributed as distributed
    import torch.distributed.distributed_c10d as c10d

    init_process_group, new_group = distributed.init_process_group, distributed.new_group

    def init(backend: Any = None, *args: Any, device_id: Any = None, pg_options: Any = None, **more: Any) -> Any:
        return init_process_group("gloo", *args, **more)

    def group(ranks: Any = None, timeout: Any = None, backend: Any = None, pg_options: Any = None, **more: Any) -> Any:
        return new_group(ranks, timeout=timeout, backend="gloo", **more)

    for module in (distributed, c10d):
        module.init_process_group, module.new_group = init, group


def _kernels_in_python() -> None:
    """Replace the functions of Transformer Engine's extension when it is loaded."""
    loader: Any = importlib.machinery.ExtensionFileLoader
    exec_module = loader.exec_module

    def exec_and_replace(self: Any, module: Any) -> None:
        exec_module(self, module)
        if module.__name__ == "transformer_engine_torch":
            from tests.gpu.rehearsal import kernels

            kernels.install(module)

    loader.exec_module = exec_and_replace
