"""Stops a run when a loss, log-probability, gradient norm or weight is not finite.

Every rank decides from values that all ranks have, so they all stop, and none is left waiting in a collective.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nemo_minordpo.config import TrainConfig
from nemo_minordpo.core.finite import first_of, tensors_not_finite
from nemo_minordpo.core.metrics import DECISIVE, not_finite
from nemo_minordpo.errors import UserError
from nemo_minordpo.pairs.tokens import expand_files, places_of
from nemo_minordpo.train.folder.run_folder import RunFolder

# Numbers of pairs -> names by which a person can find them.
Places = Callable[[Sequence[int]], list[str]]


class NotFiniteError(UserError):
    """A value of the run is not finite, and would be again with the same settings and inputs."""


def numbers_of(pairs: Sequence[int]) -> list[str]:
    """Names for pairs that are not in any file."""
    return [f"pair {number}" for number in pairs]


def places_in(config: TrainConfig, split: str) -> Places:
    """Names the pairs of a split (train or validation) by file:line, or by number if the files have changed."""

    def places(pairs: Sequence[int]) -> list[str]:
        folder = RunFolder(Path(config.exp_manager.explicit_log_dir)).data(split)
        try:
            return places_of(pairs, files=expand_files(getattr(config.model.data.data_prefix, split)), folder=folder)
        except (OSError, ValueError):  # must not hide the value that is not finite
            return numbers_of(pairs)

    return places


def require_finite(values: dict[str, float], *, when: str) -> None:
    """Check values that every rank has.

    Raises:
        NotFiniteError: one of them is not finite.
    """
    bad = [f"{name} is {value}" for name, value in values.items() if not math.isfinite(value)]
    if bad:
        raise NotFiniteError(f"{when}: {first_of(bad)}")


def require_finite_norm(norm: float, model: Any, *, when: str) -> None:
    """Check the gradient norm, the same on every rank; collective if it is not finite.

    Gradients that are not finite spread from the loss towards the embedding, so the last weight named, in the order of
    the forward pass, is the closest to where they began.

    Args:
        norm: over all gradients.
        model: PairModel, with the gradients.
        when: the step, for the message.

    Raises:
        NotFiniteError: on every rank; names the first and the last weight whose gradient is not finite.
    """
    if math.isfinite(norm):
        return
    gradients = [
        (name, gradient)
        for name, parameter in _trained(model)
        # Megatron's optimizers accumulate in main_grad
        if (gradient := getattr(parameter, "main_grad", parameter.grad)) is not None
    ]
    names = _of_all_ranks(tensors_not_finite(gradients))
    ends = " to ".join(dict.fromkeys([names[0], names[-1]])) if names else "none by itself"
    raise NotFiniteError(f"{when}: grad_norm is {norm}; weights whose gradient is not finite: {len(names)}, {ends}")


def require_finite_pairs(table: Tensor, means: dict[str, float], *, when: str, places: Places) -> None:
    """Check the metrics of each pair.

    The table is read from the device only if a mean is not finite; NaN and infinity always show in the means.

    Args:
        table: [len(PAIR_METRICS), N], for all pairs, the same on every rank.
        means: means of the table's rows, on the host.
        when: the step, for the message.
        places: names pairs, given their columns.

    Raises:
        NotFiniteError: names the metrics and the first pairs.
    """
    if all(math.isfinite(means[name]) for name in DECISIVE):
        return
    metrics, pairs = not_finite(table)
    raise NotFiniteError(f"{when}: {', '.join(metrics)} not finite for {_in_words(pairs, table.shape[1], places)}")


def require_finite_log_probs(values: np.ndarray, *, what: str, places: Places) -> None:
    """Check log-probabilities [N, 2] of pairs, the same on every rank.

    Raises:
        NotFiniteError: names the first pairs.
    """
    bad = np.flatnonzero(~np.isfinite(values).all(axis=1)).tolist()
    if bad:
        raise NotFiniteError(f"{what}: log-probabilities not finite for {_in_words(bad, len(values), places)}")


def require_finite_weights(model: Any, *, when: str) -> None:
    """Check the trained weights, each rank its own part; collective.

    Args:
        model: PairModel.
        when: the time, for the message.

    Raises:
        NotFiniteError: on every rank; names the first tensors.
    """
    if names := sorted(set(_of_all_ranks(tensors_not_finite(_trained(model))))):
        raise NotFiniteError(f"{when}: weights not finite: {first_of(names)}")


def _trained(model: Any) -> Iterator[tuple[str, Any]]:
    """This rank's trained weights, in the order of the forward pass."""
    for module in model.get_model_module_list():
        yield from ((name, weight) for name, weight in module.named_parameters() if weight.requires_grad)


def _of_all_ranks(own: list[str]) -> list[str]:
    """The names of all ranks, rank by rank; collective."""
    parts: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(parts, own)
    return [name for part in parts for name in part]


def _in_words(pairs: Sequence[int], total: int, places: Places) -> str:
    return f"{len(pairs)} of {total} pairs: {first_of(places(pairs))}"
