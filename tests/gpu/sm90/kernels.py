"""Compiled kernels, and what they need of an H100."""

import re
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.gpu.sm90.machine import SHARED_MEMORY

# Bytes of a thread that may be in local memory: what a kernel puts aside before its loops and takes back after them. A
# loop that spills has hundreds.
_LOCAL_BYTES = 32


@dataclass(frozen=True)
class Kernel:
    """name: Inductor's. source: of Triton. registers: of a thread. shared: bytes of a block of threads.

    local: bytes of a thread that registers could not hold, which is what Triton's n_spills counts in units of 4.
    narrow: instructions that load two bytes a thread.
    """

    name: str
    source: str
    warps: int
    registers: int
    shared: int
    local: int
    narrow: int

    def faults(self) -> list[str]:
        found = []
        if self.local > _LOCAL_BYTES:
            found.append(f"{self.name}: {self.local} bytes of a thread spilled")
        if self.shared > SHARED_MEMORY:
            found.append(f"{self.name}: {self.shared} bytes of shared memory, {SHARED_MEMORY} exist")
        if self.narrow and self.name.startswith("triton_tem"):  # a template: its operands are matrices
            found.append(f"{self.name}: {self.narrow} loads of two bytes")
        return found


def measured(compiled: Any, *, name: str, source: str) -> Kernel:
    """Of what triton.compile returned."""
    usage = _resources(compiled.asm["cubin"])
    return Kernel(
        name=name, source=source, warps=compiled.metadata.num_warps, registers=usage["REG"],
        shared=compiled.metadata.shared, local=usage["STACK"] + usage["LOCAL"],
        narrow=len(re.findall(r"\bld\.global\S*\.[bu]16\b", compiled.asm["ptx"])),
    )  # fmt: skip


def _resources(cubin: bytes) -> dict[str, int]:
    """What cuobjdump says: REG, STACK, SHARED (what is allocated at the launch is not in it), LOCAL, ..."""
    from triton.backends.nvidia import compiler

    tool = Path(compiler.__file__).parent / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        said = subprocess.run([tool, "-res-usage", file.name], check=True, capture_output=True, text=True).stdout
    found = {name: int(value) for name, value in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", said)}
    if found.keys() != {"REG", "STACK", "LOCAL"}:
        raise ValueError(f"cuobjdump says nothing of registers and local memory:\n{said}")
    return found


def record(into: Callable[[Kernel], None]) -> None:
    """Pass each kernel that Inductor compiles from now on to ``into``; none is loaded or launched."""
    from torch._inductor.runtime.triton_heuristics import CachingAutotuner

    autotuner: Any = CachingAutotuner
    compile_one = autotuner._precompile_config

    def compile_and_record(self: Any, config: Any) -> Any:
        result = compile_one(self, config)
        into(measured(result.kernel, name=self.inductor_meta["kernel_name"], source=self.fn.src))
        return result

    autotuner._precompile_config = compile_and_record
    autotuner._make_launchers = autotuner._dynamic_scale_rblock = lambda self: None
