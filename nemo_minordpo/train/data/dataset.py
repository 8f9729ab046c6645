"""Token arrays -> the packed micro-batches of one optimizer step; a micro-batch is one row of pairs.

The responses of a row of m pairs are in the order that core/pair_packing.py defines: m chosen, then m rejected ones.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from nemo_minordpo.config import TrainerDPOSection
from nemo_minordpo.core.flops import StepWork
from nemo_minordpo.core.pair_packing import PackedRow, PairTokens, lay_out, pack, segment_lengths
from nemo_minordpo.core.transfer import to_device
from nemo_minordpo.pairs.tokens import TokenArrays


@dataclass(frozen=True)
class MicroBatch:
    """m pairs in one row.

    pairs: [m], their indices in the split.
    in_step: [m], their indices in the step.
    row: their tokens and layout; its segments are always on the CPU, where attention reads them.
    reward_margin: [m], float32, unscaled.
    reference_log_probs: [2 m], float64, nats; None if the policy is the reference, or they are evaluated live.
    """

    pairs: np.ndarray
    in_step: np.ndarray
    row: PackedRow[Tensor]
    reward_margin: Tensor
    reference_log_probs: Tensor | None

    def to(self, device: torch.device) -> "MicroBatch":
        """A copy with all inputs of the model on ``device``."""
        segments, reference = self.row.segments, self.reference_log_probs
        return replace(
            self,
            row=self.row.mapped(lambda tensor: tensor if tensor is segments else to_device(tensor, device)),
            reward_margin=to_device(self.reward_margin, device),
            reference_log_probs=None if reference is None else to_device(reference, device),
        )


@dataclass(frozen=True)
class StepBatch:
    """One data-parallel rank's share of a step.

    num_global_pairs: over all ranks; the loss is divided by it.
    work: over all ranks; throughput is computed from it.
    row_length: S, the same for every micro-batch.
    """

    micro_batches: list[MicroBatch]
    num_global_pairs: int
    work: StepWork
    row_length: int

    def with_references(self, references: list[Tensor | None]) -> "StepBatch":
        """A copy with these reference log-probabilities, one entry per micro-batch."""
        parts = zip(self.micro_batches, references, strict=True)
        return replace(self, micro_batches=[replace(part, reference_log_probs=value) for part, value in parts])


def split_pairs(responses: Tensor) -> tuple[Tensor, Tensor]:
    """Split one value per response [2 m] into (chosen [m], rejected [m])."""
    chosen, rejected = responses.chunk(2) if len(responses) else (responses, responses)
    return chosen, rejected


def steps_per_epoch(num_pairs: int, global_batch_size: int) -> int:
    """Number of steps per epoch; the last batch may be partial."""
    return math.ceil(num_pairs / global_batch_size)


def steps_of_run(loop: TrainerDPOSection, *, num_pairs: int, global_batch_size: int) -> int:
    """Optimizer steps of a whole run: its epochs, or `max_steps` if that is less."""
    steps = loop.max_epochs * steps_per_epoch(num_pairs, global_batch_size)
    return steps if loop.max_steps < 0 else min(steps, loop.max_steps)


def pairs_of_step(step: int, *, num_pairs: int, global_batch_size: int, seed: int) -> np.ndarray:
    """The pairs of optimizer step ``step`` (from 0), which depend on the seed and the epoch, not on the layout."""
    epoch, step_in_epoch = divmod(step, steps_per_epoch(num_pairs, global_batch_size))
    order = np.random.default_rng([seed, epoch]).permutation(num_pairs)
    return order[step_in_epoch * global_batch_size : (step_in_epoch + 1) * global_batch_size]


class PairBatches:
    """Steps of a split, as one data-parallel rank sees them."""

    def __init__(
        self,
        arrays: TokenArrays,
        *,
        global_batch_size: int,
        row_capacity: int,
        row_multiple: int,
        data_parallel_rank: int,
        data_parallel_size: int,
        pad_id: int,
        num_rows_multiple: int = 1,
        reference_log_probs: np.ndarray | None = None,
    ) -> None:
        """
        Args:
            arrays: the pairs.
            global_batch_size: pairs per step, over all ranks.
            row_capacity: maximum length of a row; no pair may be longer.
            row_multiple: row lengths are multiples of this.
            data_parallel_rank, data_parallel_size: select this rank's share.
            pad_id: token id for padding.
            num_rows_multiple: each rank's number of rows is a multiple of this; empty rows fill up.
            reference_log_probs: [N, 2], nats, chosen and rejected; None if the model evaluates them live.
        """
        self.arrays = arrays
        self.global_batch_size = global_batch_size
        self.reference_log_probs = reference_log_probs
        self._capacity, self._multiple = row_capacity, row_multiple
        self._rank, self._size = data_parallel_rank, data_parallel_size
        self._pad_id, self._num_rows_multiple = pad_id, num_rows_multiple
        # computed once for the whole split
        self._sequence_lengths = arrays.sequence_lengths
        self._segment_lengths = segment_lengths_of(arrays)

    def training_step(self, step: int, *, seed: int) -> StepBatch:
        """The batch of optimizer step ``step``, from 0, in any epoch."""
        return self._batch(
            pairs_of_step(step, num_pairs=len(self.arrays), global_batch_size=self.global_batch_size, seed=seed)
        )

    def in_file_order(self, *, limit_batches: int | None = None) -> Iterator[StepBatch]:
        """Batches of every pair once, or only the first batches."""
        steps = steps_per_epoch(len(self.arrays), self.global_batch_size)
        for step in range(steps if limit_batches is None else min(steps, limit_batches)):
            start = step * self.global_batch_size
            yield self._batch(np.arange(start, min(start + self.global_batch_size, len(self.arrays))))

    def _batch(self, pairs: np.ndarray) -> StepBatch:
        lengths = self._segment_lengths[pairs]
        rows = pack(lengths, capacity=self._capacity, num_rows_multiple=self._size * self._num_rows_multiple)
        longest = max(int(lengths[row].sum()) for row in rows)
        length = max(math.ceil(longest / self._multiple), 1) * self._multiple
        return StepBatch(
            micro_batches=[self._micro_batch(pairs, row, length) for row in rows[self._rank :: self._size]],
            num_global_pairs=len(pairs),
            work=self._work(pairs, num_places=length * len(rows)),
            row_length=length,
        )

    def _micro_batch(self, pairs_of_step: np.ndarray, in_step: list[int], length: int) -> MicroBatch:
        pairs = pairs_of_step[in_step]
        row = lay_out([self._pair(pair) for pair in pairs], length=length, pad_id=self._pad_id)
        known = None if self.reference_log_probs is None else self.reference_log_probs[pairs].T.reshape(-1)
        return MicroBatch(
            pairs=pairs,
            in_step=np.asarray(in_step, dtype=np.int64),
            row=row.mapped(torch.from_numpy),
            reward_margin=torch.from_numpy(self.arrays.reward_margins[pairs]),
            reference_log_probs=None if known is None else torch.from_numpy(np.ascontiguousarray(known)),
        )

    def _work(self, pairs: np.ndarray, *, num_places: int) -> StepWork:
        chosen, rejected = (lengths[pairs].astype(np.int64) for lengths in self._sequence_lengths)
        shared, prompt = (
            self.arrays.shared_lengths[pairs].astype(np.int64),
            self.arrays.prompt_lengths[pairs].astype(np.int64),
        )
        first = np.maximum(chosen - 1, shared)  # positions of the shared tokens and the chosen tail
        tail = np.maximum(rejected - 1 - shared, 0)
        return StepWork(
            pairs=len(pairs),
            unique_tokens=int((first + tail).sum()),
            equivalent_tokens=int((chosen + rejected).sum()),
            attended=int((first * (first + 1) // 2 + tail * shared + tail * (tail + 1) // 2).sum()),
            targets=int((chosen + rejected - shared - prompt).sum()),
            places=num_places,
        )

    def _pair(self, pair: int) -> PairTokens:
        return PairTokens(
            chosen=self.arrays.sequence(pair, rejected=False),
            rejected=self.arrays.sequence(pair, rejected=True),
            num_prompt=int(self.arrays.prompt_lengths[pair]),
            num_shared=int(self.arrays.shared_lengths[pair]),
        )


def segment_lengths_of(arrays: TokenArrays) -> np.ndarray:
    """[N], positions that each pair takes in a row."""
    num_chosen, num_rejected = arrays.sequence_lengths
    return segment_lengths(num_chosen=num_chosen, num_rejected=num_rejected, num_shared=arrays.shared_lengths)
