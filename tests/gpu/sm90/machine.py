"""Pretend to have an H100 for code that only queries it (torch's front end, Inductor, Triton), without CUDA."""

import ctypes
import subprocess
import tempfile
import types
from pathlib import Path
from typing import Any

SHARED_MEMORY = 232448  # maximum bytes per block of threads on compute capability 9.0
_PROPERTIES = types.SimpleNamespace(
    name="NVIDIA H100 80GB HBM3", major=9, minor=0, multi_processor_count=132, total_memory=80 << 30,
    L2_cache_size=50 << 20, warp_size=32, max_threads_per_multi_processor=2048, max_threads_per_block=1024,
    regs_per_multiprocessor=65536, shared_memory_per_block=49152, shared_memory_per_block_optin=SHARED_MEMORY,
    shared_memory_per_multiprocessor=233472, gcnArchName="",
)  # fmt: skip


# CUDA calls that torch's autograd makes while tracing a backward pass: one device, without a context.
_LIBRARY = """
int cudaGetDeviceCount(int *count) { *count = 1; return 0; }
int cudaGetDevice(int *device) { *device = 0; return 0; }
int cudaSetDevice(int device) { return 0; }
int cudaDeviceGetStreamPriorityRange(int *least, int *greatest) { *least = *greatest = 0; return 0; }
int cuDevicePrimaryCtxGetState(int device, unsigned *flags, int *active) { *flags = *active = 0; return 0; }
"""


def pretend() -> None:
    """Call once, before anything else imports torch. From then on all tensors must be fake."""
    _load_library()
    import torch

    answers: dict[str, Any] = {
        "is_available": True, "is_initialized": True, "device_count": 1, "current_device": 0, "init": None,
        "_lazy_init": None, "get_device_properties": _PROPERTIES, "get_device_capability": (9, 0),
        "get_device_name": _PROPERTIES.name, "is_bf16_supported": True, "synchronize": None, "set_device": None,
        "_exchange_device": 0, "_maybe_exchange_device": 0, "current_stream": types.SimpleNamespace(cuda_stream=0),
    }  # fmt: skip
    for name, answer in answers.items():
        setattr(torch.cuda, name, _always(answer))
    torch.cuda.get_rng_state = lambda device=None: torch.get_rng_state()
    torch.cuda.set_rng_state = lambda state, device=None: torch.set_rng_state(state)
    torch.Tensor.pin_memory = lambda tensor, device=None: tensor  # fake tensors have no memory

    # these captured torch.cuda's functions when imported
    from torch._dynamo.device_interface import CudaInterface
    from torch._subclasses import fake_tensor

    interface: Any = CudaInterface
    for name in ("current_device", "get_device_properties", "device_count", "synchronize", "set_device"):
        setattr(interface, name, staticmethod(getattr(torch.cuda, name)))
    for name in ("exchange_device", "maybe_exchange_device"):
        setattr(interface, name, staticmethod(getattr(torch.cuda, f"_{name}")))
    fake_tensor.init_gpu_context = lambda device: None

    import torch._inductor.runtime.triton_helpers as triton_helpers
    from triton.runtime import driver

    driver.set_active(_TritonDriver())
    triton_helpers.set_driver_to_gpu = lambda: None


def _load_library() -> None:
    """Takes precedence over the real libraries, because it is loaded first."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "libcuda.so.1"
        command = ["cc", "-shared", "-fPIC", "-x", "c", "-", "-Wl,-soname,libcuda.so.1", "-o", str(file)]
        subprocess.run(command, input=_LIBRARY, text=True, check=True)
        ctypes.CDLL(str(file), mode=ctypes.RTLD_GLOBAL)


def _always(answer: Any) -> Any:
    return lambda *args, **kwargs: answer


class _TritonDriver:
    """Answers Triton's queries to its driver during compilation."""

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 0

    def get_active_torch_device(self) -> Any:
        import torch

        return torch.device("cuda", 0)
