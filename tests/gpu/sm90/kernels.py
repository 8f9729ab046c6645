"""Compiled kernels and their resources on an H100."""

import re
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.gpu.sm90.machine import SHARED_MEMORY

# Bytes per thread allowed in local memory, for values that a kernel saves before its loops and restores after them. A
# loop that spills uses hundreds.
_LOCAL_BYTES = 32


@dataclass(frozen=True)
class Kernel:
    """name: Inductor's. source: Triton's. registers: per thread. shared: bytes per block of threads.

    local: bytes per thread that did not fit in registers (Triton's n_spills counts them in units of 4).
    narrow: instructions that load two bytes per thread.
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
            found.append(f"{self.name}: {self.local} bytes per thread spilled")
        if self.shared > SHARED_MEMORY:
            found.append(f"{self.name}: {self.shared} bytes of shared memory, {SHARED_MEMORY} exist")
        if self.narrow and self.name.startswith("triton_tem"):  # a template: its operands are matrices
            found.append(f"{self.name}: {self.narrow} loads of two bytes")
        return found


def measured(compiled: Any, *, name: str, source: str) -> Kernel:
    """Resources of a kernel that triton.compile returned."""
    usage = _resources(compiled.asm["cubin"])
    return Kernel(
        name=name, source=source, warps=compiled.metadata.num_warps, registers=usage["REG"],
        shared=compiled.metadata.shared, local=usage["STACK"] + usage["LOCAL"],
        narrow=len(re.findall(r"\bld\.global\S*\.[bu]16\b", compiled.asm["ptx"])),
    )  # fmt: skip


def _resources(cubin: bytes) -> dict[str, int]:
    """Output of cuobjdump: REG, STACK, SHARED (without memory allocated at launch), LOCAL, ..."""
    from triton.backends.nvidia import compiler

    tool = Path(compiler.__file__).parent / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        said = subprocess.run([tool, "-res-usage", file.name], check=True, capture_output=True, text=True).stdout
    found = {name: int(value) for name, value in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", said)}
    if found.keys() != {"REG", "STACK", "LOCAL"}:
        raise ValueError(f"cuobjdump does not report registers and local memory:\n{said}")
    return found


def record(into: Callable[[Kernel], None]) -> None:
    """Pass each kernel that Inductor compiles from now on to ``into``, without loading or launching it."""
    from torch._inductor.runtime.triton_heuristics import CachingAutotuner

    autotuner: Any = CachingAutotuner
    compile_one = autotuner._precompile_config

    def compile_and_record(self: Any, config: Any) -> Any:
        result = compile_one(self, config)
        into(measured(result.kernel, name=self.inductor_meta["kernel_name"], source=self.fn.src))
        return result

    autotuner._precompile_config = compile_and_record
    autotuner._make_launchers = autotuner._dynamic_scale_rblock = lambda self: None
