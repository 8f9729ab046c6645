"""The losses of a run, of core/losses.py or a user-defined function, and their inputs.

A user-defined loss is named `package.module:function`. It is imported from the current folder or an installed package,
and tried on two pairs before anything is loaded or written.
"""

import importlib
import os
import sys
import traceback
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from nemo_minordpo.config import DPOSection, weights_of
from nemo_minordpo.core.logprobs import num_tokens, sequence_log_probs, shared_log_probs
from nemo_minordpo.core.losses import LOSSES, Loss, Options, Pairs, needs_reference
from nemo_minordpo.core.objective import options_of
from nemo_minordpo.errors import UserError
from nemo_minordpo.train.data.dataset import MicroBatch, split_pairs

_KEY = "model.dpo.preference_loss"


def loss_called(name: str) -> Loss:
    """The loss with a given name in `model.dpo.preference_loss`.

    Raises:
        UserError: the user-defined function does not exist or cannot be imported.
    """
    return LOSSES[name] if name in LOSSES else _own_loss(name)


def losses_of(section: DPOSection) -> dict[Loss, float]:
    """The losses of the objective and their weights; errors as of :func:`loss_called`."""
    return {loss_called(name): weight for name, weight in weights_of(section).items()}


def source_of(section: DPOSection) -> dict[str, list[Path]]:
    """The file of a user-defined loss, as an input of the run: its contents are part of the run's identity."""
    files = [_module_of(name).__file__ for name in _own(section)]
    return {"loss": [Path(file) for file in files if file is not None]} if files else {}


def pairs_of(token_log_probs: Tensor, micro_batch: MicroBatch, *, needs_reference: bool) -> Pairs:
    """The inputs of the losses for a micro-batch.

    Args:
        token_log_probs: [T], nats, under the policy.
        micro_batch: the m pairs; without reference log-probabilities, the policy is the reference.
        needs_reference: False = use log-probabilities in place of log-ratios.
    """
    credits = micro_batch.row.credits
    log_ratios = log_probs = sequence_log_probs(token_log_probs, credits)
    if needs_reference:
        known = micro_batch.reference_log_probs
        log_ratios = log_probs - (log_probs.detach() if known is None else known)
    chosen_log_ratio, rejected_log_ratio = split_pairs(log_ratios)
    chosen_log_probs, rejected_log_probs = split_pairs(log_probs)
    counts = num_tokens(credits, num_targets=len(micro_batch.row.targets))
    chosen_num_tokens, rejected_num_tokens = split_pairs(counts)
    return Pairs(
        chosen_log_ratio=chosen_log_ratio,
        rejected_log_ratio=rejected_log_ratio,
        chosen_log_probs=chosen_log_probs,
        rejected_log_probs=rejected_log_probs,
        shared_log_probs=shared_log_probs(token_log_probs, credits),
        chosen_num_tokens=chosen_num_tokens,
        rejected_num_tokens=rejected_num_tokens,
        reward_margin=micro_batch.reward_margin,
    )


def require_usable_loss(section: DPOSection) -> None:
    """Try a user-defined loss on two pairs, on each of them alone, and on none (rows can be empty).

    Raises:
        UserError: the loss cannot be used; the message says why.
    """
    for name in _own(section):
        _require_usable(name, options_of(section))


def _own(section: DPOSection) -> list[str]:
    """The names of user-defined losses: one or none."""
    return [name for name in weights_of(section) if name not in LOSSES]


def _require_usable(name: str, options: Options) -> None:
    loss = _own_loss(name)
    log_probs = torch.tensor([-3.0, -7.5, -4.0, -6.5], dtype=torch.float64, requires_grad=True)
    reference = torch.tensor([-3.5, -7.0, -3.75, -7.5], dtype=torch.float64)
    log_ratios = log_probs - reference if needs_reference(loss) else log_probs
    together = _tried(loss, name, options, log_probs, log_ratios, pairs=slice(0, 2))
    if not together.isfinite().all():
        raise UserError(f"{_KEY}={name} returns {together.tolist()} for two ordinary pairs; finite numbers expected")
    alone = [_tried(loss, name, options, log_probs, log_ratios, pairs=slice(pair, pair + 1)) for pair in range(2)]
    if not torch.allclose(torch.cat(alone), together):
        raise UserError(
            f"{_KEY}={name} returns {together.tolist()} for two pairs, but {torch.cat(alone).tolist()} for each alone; "
            "the value of a pair must not depend on other pairs, because packing decides which pairs share a row"
        )
    _require_gradient(together, log_probs, name)
    _tried(loss, name, options, log_probs, log_ratios, pairs=slice(0, 0))


def _module_of(name: str) -> ModuleType:
    module_name = name.partition(":")[0]
    if (here := os.getcwd()) not in sys.path:  # the script `minordpo` does not have it there
        sys.path.insert(0, here)
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is not None and f"{module_name}.".startswith(f"{error.name}."):
            reason = f"no module {error.name!r} in the current folder {here} or among the installed packages"
        else:
            reason = f"{module_name} imports {error.name!r}, which is not installed"
        raise UserError(f"{_KEY}={name}: {reason}") from error
    except (Exception, SystemExit) as error:  # whatever the user's code raises
        raise UserError(f"{_KEY}={name}: {module_name} cannot be imported: {_in_words(error)}") from error


def _own_loss(name: str) -> Any:
    module, function_name = _module_of(name), name.partition(":")[2]
    loss: Any = getattr(module, function_name, None)
    if not callable(loss):
        raise UserError(f"{_KEY}={name}: {module.__name__} has no function {function_name}")
    if not isinstance(getattr(loss, "needs_reference", True), bool):
        raise UserError(f"{_KEY}={name}: {function_name}.needs_reference must be True or False")
    return loss


def _tried(loss: Loss, name: str, options: Options, log_probs: Tensor, log_ratios: Tensor, *, pairs: slice) -> Tensor:
    """The loss of a slice of two pairs: [N], float64; the inputs have the chosen responses first."""
    chosen, rejected = slice(0, 2), slice(2, 4)
    some = Pairs(
        chosen_log_ratio=log_ratios[chosen][pairs],
        rejected_log_ratio=log_ratios[rejected][pairs],
        chosen_log_probs=log_probs[chosen][pairs],
        rejected_log_probs=log_probs[rejected][pairs],
        shared_log_probs=log_probs[chosen][pairs] / 2,
        chosen_num_tokens=torch.tensor([3, 9])[pairs],
        rejected_num_tokens=torch.tensor([5, 6])[pairs],
        reward_margin=torch.tensor([1.0, 0.5])[pairs],
    )
    try:
        values: Any = loss(some, options)
    except Exception as error:  # whatever the user's code raises
        count = len(some.reward_margin)
        raise UserError(
            f"{_KEY}={name} fails for {count} pairs, called as (pairs, options): {_in_words(error)}"
        ) from error
    expected = f"a tensor {list(some.chosen_log_ratio.shape)} of float64, one value per pair, expected"
    if not isinstance(values, Tensor):
        raise UserError(f"{_KEY}={name} returns {type(values).__name__}; {expected}")
    if values.shape != some.chosen_log_ratio.shape or values.dtype != torch.float64:
        kind = str(values.dtype).removeprefix("torch.")
        raise UserError(f"{_KEY}={name} returns a tensor {list(values.shape)} of {kind}; {expected}")
    return values


def _require_gradient(values: Tensor, inputs: Tensor, name: str) -> None:
    gradient = None
    if values.requires_grad:
        (gradient,) = torch.autograd.grad(values.sum(), inputs, allow_unused=True)
    if gradient is None or not gradient.any():
        raise UserError(f"{_KEY}={name}: its values have no gradient with respect to log-ratios or log-probabilities")
    if not gradient.isfinite().all():
        raise UserError(
            f"{_KEY}={name} has the gradient {gradient.tolist()} for two ordinary pairs; finite numbers expected"
        )


def _in_words(error: BaseException) -> str:
    """An error in one line, with the last place in the user's code if there is one."""
    ours = (__file__, importlib.__file__, "<frozen importlib")
    frames = traceback.extract_tb(error.__traceback__)
    places = [f" ({frame.filename}:{frame.lineno})" for frame in frames if not frame.filename.startswith(ours)]
    return f"{type(error).__name__}: {' '.join(str(error).split())}" + "".join(places[-1:])
