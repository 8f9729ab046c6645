"""Checkpoints of a run: distributed, complete or absent, readable at any layout.

`checkpoints/step_000120/` holds model, optimizer and counters in Megatron's torch_dist format. It is written under a
temporary name and renamed by rank 0 when every rank is done.
"""

import json
import re
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.core import CheckpointingException
from megatron.core.dist_checkpointing.optimizer import get_param_id_to_sharded_param_map, optim_state_to_sharding_state
from nemo.core.optim.optimizers import init_optimizer_states
from torch.distributed.checkpoint.api import CheckpointException

_NAME = re.compile(r"step_(\d+)")
_TORCH_OPTIMIZERS = (torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD)


@dataclass(frozen=True)
class Progress:
    """How far a run is; whole numbers, from the checkpoint's own content."""

    step: int = 0  # optimizer steps done
    consumed_pairs: int = 0


def newest_checkpoint(folder: Path) -> Path | None:
    """The checkpoint with the most steps, if there is one."""
    found = _all(folder)
    return found[-1] if found else None


def save_checkpoint(folder: Path, *, strategy: Any, model: Any, optimizer: Any, progress: Progress, keep: int) -> Path:
    """Write a checkpoint with every rank, then remove those beyond the newest ``keep``."""
    path = folder / f"step_{progress.step:06d}"
    temporary = folder / f".{path.name}.tmp"
    if _is_first_rank():
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
    torch.distributed.barrier()
    state, steps = _sharded_state(strategy, model, optimizer, is_loading=False)
    state["progress"] = asdict(progress)
    state["optimizer_steps"] = steps
    strategy.unwrapped_checkpoint_io.save_checkpoint(state, str(temporary))
    torch.distributed.barrier()
    if _is_first_rank():
        # for people and tools; what resumes a run is inside the checkpoint
        (temporary / "progress.json").write_text(json.dumps(asdict(progress)) + "\n")
        shutil.rmtree(path, ignore_errors=True)
        temporary.rename(path)
        for old in _all(folder)[:-keep]:
            shutil.rmtree(old)
    torch.distributed.barrier()
    return path


def load_checkpoint(path: Path, *, strategy: Any, model: Any, optimizer: Any) -> Progress:
    """Restore model and optimizer at the present layout, whatever the one was that wrote the checkpoint.

    Raises:
        ValueError: the folder cannot be read as a checkpoint of this model.
    """
    state, _ = _sharded_state(strategy, model, optimizer, is_loading=True)
    unreadable = (
        OSError,
        EOFError,
        KeyError,
        RuntimeError,
        UnpicklingError,
        CheckpointException,
        CheckpointingException,
    )
    try:
        common = dist_checkpointing.load_common_state_dict(path)
        loaded = strategy.unwrapped_checkpoint_io.load_checkpoint(str(path), sharded_state_dict=state)
        progress = Progress(**common["progress"])
    except unreadable as error:
        raise ValueError(
            f"{path} is damaged, or no checkpoint of this run ({type(error).__name__}: {error}); "
            "take the folder away, and the run goes on from the one before it"
        ) from error
    for module in model.get_model_module_list():
        # with adapters the checkpoint holds nothing but them
        weights = {key.removeprefix("model."): value for key, value in loaded["model"].items()}
        missing = module.load_state_dict(weights, strict=not model.use_peft)
        assert not missing.unexpected_keys, missing.unexpected_keys
    optimizer_state = loaded["optimizer"]
    if isinstance(optimizer, _TORCH_OPTIMIZERS):
        for values in optimizer_state["state"].values():
            if common["optimizer_steps"] is not None:
                values["step"] = torch.tensor(float(common["optimizer_steps"]))
    optimizer.load_state_dict(optimizer_state)
    return progress


def _sharded_state(strategy: Any, model: Any, optimizer: Any, *, is_loading: bool) -> tuple[dict[str, Any], int | None]:
    """Model and optimizer as Megatron's sharded state, and torch's step count, which is no sharded tensor."""
    if not isinstance(optimizer, _TORCH_OPTIMIZERS):
        sharded = strategy.optimizer_sharded_state_dict(
            unsharded_optim_state=None if is_loading else optimizer.state_dict(), is_loading=is_loading
        )
        return {"model": model.sharded_state_dict(), "optimizer": sharded}, None
    init_optimizer_states(optimizer)
    weights = model.sharded_state_dict()
    state = optimizer.state_dict()
    # NeMo shards the scalar `step` like a weight, which fails; left out, Adam's bias correction would start anew.
    state["state"] = {key: dict(values) for key, values in state["state"].items()}
    steps = {int(values.pop("step")) for values in state["state"].values() if "step" in values}
    assert len(steps) <= 1, f"parameters with different optimizer steps: {sorted(steps)}"
    by_id: Any = get_param_id_to_sharded_param_map(
        model_sharded_state_dict={key: value for key, value in weights.items() if not key.endswith("_extra_state")},
        optim_params_iter=(parameter for group in optimizer.param_groups for parameter in group["params"]),
    )
    optim_state_to_sharding_state(state, by_id)
    return {"model": weights, "optimizer": state}, next(iter(steps), None)


def _all(folder: Path) -> list[Path]:
    return sorted((path for path in folder.glob("step_*") if _NAME.fullmatch(path.name)), key=_step_of)


def _step_of(path: Path) -> int:
    match = _NAME.fullmatch(path.name)
    assert match is not None
    return int(match[1])


def _is_first_rank() -> bool:
    return torch.distributed.get_rank() == 0
