"""Log-probabilities of all responses under the reference: the model before its first step."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from nemo_minordpo.terminal import progress_bar
from nemo_minordpo.train.data.dataset import StepBatch
from nemo_minordpo.train.model.fp8 import move_scales
from nemo_minordpo.train.require_finite import Places, numbers_of, require_finite_log_probs


def evaluate_reference(model: Any, batches: Any, *, title: str, places: Places = numbers_of) -> np.ndarray:
    """:func:`log_probs_of` with the model temporarily in eval mode, with a progress bar.

    Args:
        model: PairModel.
        batches: dataset.PairBatches of the split.
        title: title of the progress bar.
        places: names pairs in the error message.

    Raises:
        NotFiniteError: on every rank, if log-probabilities are not finite.
    """
    is_first = torch.distributed.get_rank() == 0
    with model.evaluating(), progress_bar(disable=not is_first) as bar:
        task = bar.add_task(title, total=len(batches.arrays))
        values = log_probs_of(model, batches, on_batch=lambda pairs: bar.advance(task, pairs))
    require_finite_log_probs(values, what=title, places=places)
    return values


def log_probs_of(model: Any, batches: Any, *, on_batch: Callable[[int], None] = lambda pairs: None) -> np.ndarray:
    """[N, 2], float64, nats, on every rank: log-probabilities of all responses, chosen and rejected.

    Args:
        model: PairModel in eval mode.
        batches: dataset.PairBatches.
        on_batch: called with the number of pairs of each batch.
    """
    values = torch.zeros(len(batches.arrays), 2, dtype=torch.float64, device=torch.cuda.current_device())
    for batch in batches.in_file_order():
        for part, log_probs in zip(batch.micro_batches, model.get_logprob_batch(batch), strict=True):
            if log_probs is not None:
                values[part.pairs] = log_probs.reshape(2, -1).T
        on_batch(batch.num_global_pairs)
    return model.gathered(values).cpu().numpy()


def noise_of_reference(model: Any, batch: StepBatch, *, live: bool) -> float:
    """The largest difference between two evaluations of the reference, per response, in nats; collective.

    Before the first step the policy is the reference. Compared with the cached evaluation, responses now have other
    neighbours in their rows and, in FP8, other scales, as they will for the policy after some steps; a live reference
    differs in neither.

    Infinite if a log-probability is not finite.

    Args:
        model: PairModel, before its first step.
        batch: pairs as packed for training, with the reference log-probabilities that training would use.
        live: whether these were evaluated live.
    """
    largest = torch.zeros((), dtype=torch.float64, device=torch.cuda.current_device())
    with model.evaluating():
        if not live:
            move_scales(model)
        again = model.get_logprob_batch(batch)
    for part, log_probs in zip(batch.micro_batches, again, strict=True):
        if log_probs is not None and len(log_probs):
            assert part.reference_log_probs is not None
            largest = largest.maximum((log_probs - part.reference_log_probs.to(log_probs)).abs().max())
    # a maximum over ranks may drop a NaN
    largest.nan_to_num_(nan=math.inf, posinf=math.inf)
    torch.distributed.all_reduce(largest, op=torch.distributed.ReduceOp.MAX)
    return largest.item()
