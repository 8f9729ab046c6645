"""Megatron-Core's distributed optimizer on torch's Adam, without Apex or Transformer Engine."""

import functools
from typing import Any

import torch

from nemo_minordpo.errors import require_upstream
from nemo_minordpo.host import StandIn

# The methods of the format that any layout can read
_BEFORE = ("sharded_param_state_fs_model_space", "load_parameter_state_from_fs_model_space")
_FROM_0_19 = ("sharded_param_state_fully_reshardable", "load_parameter_state_from_fully_reshardable")


def install() -> list[StandIn]:
    """For Megatron-Core 0.10 - 0.12 and 0.19.

    Its checkpoints store Adam's state of a weight in the shape of that weight. Torch's state also has the step count,
    a scalar, which Megatron already stores in the parameter groups. It also fails if no step has been taken yet.
    """
    import megatron.core.optimizer.distrib_optimizer as distributed

    if distributed.HAVE_APEX_OR_TE:
        return []
    optimizer: Any = distributed.DistributedOptimizer
    for name in _FROM_0_19 if hasattr(optimizer, _FROM_0_19[0]) else _BEFORE:
        require_upstream(optimizer, name)
        setattr(optimizer, name, _without_steps(getattr(optimizer, name)))
    state_dict = optimizer.state_dict

    def with_steps(self: Any) -> Any:
        if not self.optimizer.state:
            self.init_state_fn(self.optimizer)
            for values in self.optimizer.state.values():
                values["step"] = torch.zeros(())
        return state_dict(self)

    optimizer.state_dict = with_steps
    return [StandIn("Adam of Apex or Transformer Engine in Megatron's distributed optimizer", "torch's")]


def _without_steps(method: Any) -> Any:
    @functools.wraps(method)
    def wrapper(self: Any, *args: Any, **kwargs: Any) -> Any:
        states = [values for values in self.optimizer.state.values() if "step" in values]
        steps = [values.pop("step") for values in states]
        try:
            return method(self, *args, **kwargs)
        finally:
            for values, step in zip(states, steps, strict=True):
                # Megatron loads one shared tensor for all weights; torch would increment it once per weight
                values["step"] = step.clone()

    return wrapper
