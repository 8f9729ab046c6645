"""Compile functions for an H100 with torch.compile, from tensors without values."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tests.gpu.sm90 import kernels, machine
from tests.gpu.sm90.kernels import Kernel

_KERNELS: list[Kernel] = []


def prepare() -> None:
    """Call once, before anything is compiled."""
    # every kernel is compiled here, in this process
    os.environ["TORCHINDUCTOR_FORCE_DISABLE_CACHES"] = "1"
    os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"
    machine.pretend()
    kernels.record(_KERNELS.append)

    import torch
    import torch._functorch.config
    import torch._inductor.compile_fx as inductor
    import torch._inductor.fx_passes.joint_graph as joint_graph

    # patterns of matrix products and attention: built from tensors on the device, and not needed here
    joint_graph.lazy_init = lambda device=None: None
    torch._functorch.config.force_non_lazy_backward_lowering = True
    # would create constants on the device; without it they are kernel constants anyway
    torch._inductor.config.joint_graph_constant_folding = False
    # a kernel for this launcher would no longer have its binary
    torch._inductor.config.use_static_triton_launcher = False
    compile_fx = inductor.compile_fx

    def compile_only(graph: Any, *args: Any, **options: Any) -> Any:
        """Compile, and return a function that infers the shapes of the results."""
        compile_fx(torch.fx.GraphModule(graph, graph.graph.__deepcopy__()), *args, **options)
        return graph.forward

    inductor.compile_fx = compile_only


@contextmanager
def counted() -> Iterator[dict[str, Any]]:
    """Collect the graphs and kernels that the block compiles, starting with empty caches."""
    from torch._dynamo import reset
    from torch._dynamo.utils import counters
    from torch._subclasses import FakeTensorMode

    reset()
    counters.clear()
    _KERNELS.clear()
    found: dict[str, Any] = {}
    with FakeTensorMode(allow_non_fake_inputs=True):
        yield found
    found["graphs"] = counters["stats"]["unique_graphs"]
    found["kernels"] = list(_KERNELS)
