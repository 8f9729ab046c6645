"""Megatron's random states on a machine without a GPU."""

from typing import Any

import torch

from nemo_minordpo.errors import require_upstream
from nemo_minordpo.host import StandIn


def install() -> StandIn:
    """Let Megatron's random state tracker use the CPU generator (Megatron-Core 0.10 - 0.12 and 0.19)."""
    import megatron.core.tensor_parallel.random as random

    require_upstream(random, "_set_cuda_rng_state")
    module: Any = random
    module._set_cuda_rng_state = lambda state, device=-1, graph_safe=False: torch.set_rng_state(state)
    if hasattr(random, "_get_cuda_rng_state"):  # from 0.11 on
        module._get_cuda_rng_state = lambda device="cpu", clone=False, graph_safe=False: torch.get_rng_state()
    return StandIn("CUDA random states", "Megatron's random state tracker on the CPU generator")
