"""GPU time by kind of kernel, from one profiled step."""

import json
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# The first matching pattern decides, because an attention kernel's name may mention its building blocks. Names come
# from cuBLAS (nvjet, xmma, cutlass, gemm), Inductor (FlexAttention), NCCL, Transformer Engine and torch.
_KINDS = {
    "communication": r"nccl",
    "attention": r"flex_attention|flash|fmha|sdpa|attention",
    "optimizer": r"adam|multi_tensor|l2norm",
    "matrix products": r"gemm|gemv|nvjet|xmma|cutlass|cublas|splitk|sm\d+_|_mm_",
    "casts to FP8": r"fp8|quantiz|cast_transpose|amax|delayed_scaling",
    "copies": r"memcpy|memset",
}
OTHER = "elementwise and other"
_OF_TRACE = ("kernel", "gpu_memcpy", "gpu_memset")
_TOP = 15


@dataclass(frozen=True)
class Kernel:
    """An interval on the GPU, in seconds from any origin."""

    name: str
    start_s: float
    end_s: float

    @property
    def seconds(self) -> float:
        return self.end_s - self.start_s


def profiled(step: Callable[[], Any]) -> list[Kernel]:
    """Profile a step, which must wait for the GPU at its end."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as found:
        step()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "trace.json"
        found.export_chrome_trace(str(file))
        return kernels_of_trace(json.loads(file.read_text()))


def kernels_of_trace(trace: dict[str, Any]) -> list[Kernel]:
    """Kernels, copies and fills in a Chrome trace (times in microseconds), without CPU events."""
    return [
        Kernel(event["name"], event["ts"] / 1e6, (event["ts"] + event["dur"]) / 1e6)
        for event in trace["traceEvents"]
        if event.get("cat") in _OF_TRACE and event.get("ph") == "X"
    ]


def summary(kernels: Sequence[Kernel], *, wall_s: float) -> dict[str, Any]:
    """Seconds by kind, idle seconds, and the longest kernels.

    Args:
        kernels: the kernels of a step.
        wall_s: seconds of the step; time without any kernel is idle.

    Returns:
        `kinds`: seconds by kind, which add up to more than the busy time if streams overlap; `busy_s`, `idle_s`,
        `wall_s`, `num_kernels`; `top`: kernels by name with seconds and calls, longest total first.
    """
    calls = Counter(kernel.name for kernel in kernels)
    by_name = dict.fromkeys(calls, 0.0)
    for kernel in kernels:
        by_name[kernel.name] += kernel.seconds
    by_kind = dict.fromkeys((*_KINDS, OTHER), 0.0)
    for name, seconds in by_name.items():
        by_kind[kind_of(name)] += seconds
    busy = _covered(kernels)
    return {
        "kinds": by_kind,
        "busy_s": busy,
        "idle_s": wall_s - busy,
        "wall_s": wall_s,
        "num_kernels": len(kernels),
        "top": [
            {"name": name[:200], "kind": kind_of(name), "seconds": seconds, "calls": calls[name]}
            for name, seconds in sorted(by_name.items(), key=lambda item: -item[1])[:_TOP]
        ],
    }


def kind_of(name: str) -> str:
    return next((kind for kind, pattern in _KINDS.items() if re.search(pattern, name, re.IGNORECASE)), OTHER)


def in_words(found: dict[str, Any]) -> str:
    """Shares of the step, for parts that take at least 1 %."""
    parts = {**found["kinds"], "idle": found["idle_s"]}
    shares = {name: seconds / found["wall_s"] for name, seconds in parts.items()}
    ordered = sorted(shares.items(), key=lambda item: -item[1])
    return ", ".join(f"{name} {share:.0%}" for name, share in ordered if share >= 0.01)


def _covered(kernels: Sequence[Kernel]) -> float:
    """Seconds in which at least one kernel runs."""
    total, end = 0.0, float("-inf")
    for kernel in sorted(kernels, key=lambda kernel: kernel.start_s):
        total += max(kernel.end_s - max(kernel.start_s, end), 0.0)
        end = max(end, kernel.end_s)
    return total
