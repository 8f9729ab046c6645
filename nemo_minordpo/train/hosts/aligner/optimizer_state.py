"""The optimizer's part of a checkpoint: its state as Megatron's sharded tensors, readable at any layout.

Megatron's and Apex's distributed optimizers shard themselves. This module handles torch's own optimizers, bare or in
NeMo's wrapper, which adds float32 main weights to bfloat16 ones (`megatron_amp_O2`).
"""

from typing import Any

import torch
from megatron.core.dist_checkpointing.optimizer import (
    get_param_id_to_sharded_param_map,
    make_sharded_optimizer_tensor,
    optim_state_to_sharding_state,
)
from nemo.core.optim.optimizer_with_main_params import MainParamsOptimizerWrapper
from nemo.core.optim.optimizers import init_optimizer_states

_TORCH_OPTIMIZERS = (torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD)
_MAIN_WEIGHTS = "fp32_from_fp16_params"  # as NeMo's wrapper names them in its state


def sharded_optimizer_state(
    strategy: Any, optimizer: Any, weights: dict[str, Any], *, is_loading: bool
) -> tuple[dict[str, Any], int | None]:
    """State to save, or to load into, and the number of steps.

    Torch counts steps per parameter, in scalars. NeMo shards these like weights, which fails; without them, Adam's bias
    correction would restart after a resume. So the checkpoint stores a single number of steps; it is None if the
    optimizer saves its own.

    Args:
        strategy: NeMo's.
        optimizer: torch's, or NeMo's wrapper of it.
        weights: the model's sharded state.
        is_loading: whether the state is to be loaded into.
    """
    inner = _torch_optimizer(optimizer)
    if inner is None:
        own = None if is_loading else optimizer.state_dict()
        return strategy.optimizer_sharded_state_dict(unsharded_optim_state=own, is_loading=is_loading), None
    init_optimizer_states(inner)
    state = inner.state_dict()
    state["state"] = {key: dict(values) for key, values in state["state"].items()}
    steps = {int(values.pop("step")) for values in state["state"].values() if "step" in values}
    assert len(steps) <= 1, f"parameters with different optimizer steps: {sorted(steps)}"
    by_id: Any = get_param_id_to_sharded_param_map(
        model_sharded_state_dict={key: value for key, value in weights.items() if not key.endswith("_extra_state")},
        optim_params_iter=_model_weights(optimizer, inner),
    )
    optim_state_to_sharding_state(state, by_id)
    if inner is not optimizer:
        state = {"optimizer": state, _MAIN_WEIGHTS: _sharded_main_weights(optimizer, inner, by_id)}
    return state, next(iter(steps), None)


def load_optimizer_state(optimizer: Any, state: dict[str, Any], *, steps: int | None) -> None:
    """Load state that was read into the result of :func:`sharded_optimizer_state`.

    Args:
        optimizer: as there.
        state: read from a checkpoint.
        steps: the number of steps saved with it.
    """
    inner = _torch_optimizer(optimizer)
    if inner is not None and steps is not None:
        of_torch = state if inner is optimizer else state["optimizer"]
        for values in of_torch["state"].values():
            values["step"] = torch.tensor(float(steps))
    optimizer.load_state_dict(state)


def _torch_optimizer(optimizer: Any) -> Any | None:
    """Torch's optimizer, without NeMo's wrapper; None if it is not one of torch's."""
    inner = optimizer.optimizer if isinstance(optimizer, MainParamsOptimizerWrapper) else optimizer
    return inner if isinstance(inner, _TORCH_OPTIMIZERS) else None


def _model_weights(optimizer: Any, inner: Any) -> list[Any]:
    """The model's own weights in the optimizer's order; the optimizer replaces some by float32 main weights."""
    of_main: dict[int, Any] = {}
    if inner is not optimizer:
        groups = zip(optimizer.fp32_from_float16_groups, optimizer.float16_groups, strict=True)
        of_main = {id(main): weight for mains, own in groups for main, weight in zip(mains, own, strict=True)}
    return [of_main.get(id(weight), weight) for group in inner.param_groups for weight in group["params"]]


def _sharded_main_weights(optimizer: Any, inner: Any, by_id: dict[int, Any]) -> list[list[Any]]:
    """The float32 main weights of each group, sharded like the weights they belong to."""
    weights = (weight for group in inner.param_groups for weight in group["params"])
    number_of = {id(weight): number for number, weight in enumerate(weights)}
    return [
        [
            make_sharded_optimizer_tensor(by_id[number_of[id(main)]], main, prefix="optimizer.state.fp32_param")
            for main in mains
        ]
        for mains in optimizer.fp32_from_float16_groups
    ]
