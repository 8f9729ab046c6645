"""Token arrays -> the micro-batches of one optimizer step, the same for every layout up to padding.

Order of rows in a micro-batch of m pairs, owned by this module: m chosen responses, then m rejected ones.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from nemo_minordpo.train.tokens import TokenArrays

_FILLER = -1


@dataclass
class MicroBatch:
    """m pairs for one forward pass. S = padded length, T = response tokens in all.

    tokens: [2 m, S]; padding stands at the end.
    response_index: [T]; where the hidden state that predicts a response token lies in a flattened [S, 2 m].
    targets: [T], token ids.
    row, column: [T]; the response (0 .. 2 m - 1) that a token belongs to, and its place in it.
    valid: [m], bool; False = filler, in no loss and no count.
    reward_margin: [m], float32, unscaled.
    """

    tokens: Tensor
    response_index: Tensor
    targets: Tensor
    row: Tensor
    column: Tensor
    valid: Tensor
    reward_margin: Tensor

    def to(self, device: torch.device) -> "MicroBatch":
        moved = {name: getattr(self, name).to(device, non_blocking=True) for name in self.__dataclass_fields__}
        return MicroBatch(**moved)


@dataclass
class StepBatch:
    """What one data-parallel rank does in one step."""

    micro_batches: list[MicroBatch]
    num_global_pairs: int  # valid pairs over all ranks: what the loss is divided by
    num_global_tokens: int  # of these pairs, both sequences, without padding
    seq_length: int  # S of every micro-batch


def split_pairs(rows: Tensor) -> tuple[Tensor, Tensor]:
    """(chosen [m], rejected [m]) of one value a response [2 m]."""
    chosen, rejected = rows.chunk(2)
    return chosen, rejected


def steps_per_epoch(num_pairs: int, global_batch_size: int) -> int:
    """The last batch of an epoch may be a partial one."""
    return math.ceil(num_pairs / global_batch_size)


def pairs_of_step(step: int, *, num_pairs: int, global_batch_size: int, seed: int) -> np.ndarray:
    """The pairs of optimizer step ``step`` (from 0): they depend on the seed and the epoch, not on the layout."""
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
        micro_batch_size: int,
        data_parallel_rank: int,
        data_parallel_size: int,
        pad_multiple: int,
        pad_id: int,
    ) -> None:
        """Args in pairs, ranks and tokens; `pad_multiple` is what the padded length must be divisible by."""
        self.arrays = arrays
        self.global_batch_size = global_batch_size
        self._micro_batch_size = micro_batch_size
        self._rank, self._size = data_parallel_rank, data_parallel_size
        self._pad_multiple, self._pad_id = pad_multiple, pad_id

    def training_step(self, step: int, *, seed: int) -> StepBatch:
        """The batch of optimizer step ``step``, from 0, in any epoch."""
        return self._batch(
            pairs_of_step(step, num_pairs=len(self.arrays), global_batch_size=self.global_batch_size, seed=seed)
        )

    def in_file_order(self, *, limit_batches: int | None) -> Iterator[StepBatch]:
        """Every pair once, or those of the first batches."""
        steps = steps_per_epoch(len(self.arrays), self.global_batch_size)
        for step in range(steps if limit_batches is None else min(steps, limit_batches)):
            start = step * self.global_batch_size
            yield self._batch(np.arange(start, min(start + self.global_batch_size, len(self.arrays))))

    def _batch(self, pairs: np.ndarray) -> StepBatch:
        multiple = self._size * self._micro_batch_size
        filler = np.full(-len(pairs) % multiple, _FILLER)
        mine = np.concatenate([pairs, filler])[self._rank :: self._size]
        longest = max(len(self.arrays.sequence(pair, rejected=side)) for pair in pairs for side in (False, True))
        # one less: the last token of a sequence is only ever a target
        length = math.ceil((longest - 1) / self._pad_multiple) * self._pad_multiple
        return StepBatch(
            micro_batches=[self._micro_batch(part, length) for part in mine.reshape(-1, self._micro_batch_size)],
            num_global_pairs=len(pairs),
            num_global_tokens=sum(
                len(self.arrays.sequence(pair, rejected=side)) for pair in pairs for side in (False, True)
            ),
            seq_length=length,
        )

    def _micro_batch(self, pairs: np.ndarray, length: int) -> MicroBatch:
        rows = [(pair, rejected) for rejected in (False, True) for pair in pairs]
        tokens = np.full((len(rows), length), self._pad_id, dtype=np.int64)
        index, targets, row_of, column_of = [], [], [], []
        for row, (pair, rejected) in enumerate(rows):
            if pair == _FILLER:
                continue
            sequence = self.arrays.sequence(pair, rejected=rejected)
            tokens[row, : len(sequence) - 1] = sequence[:-1]
            first = int(self.arrays.prompt_lengths[pair]) - 1  # this place predicts the first response token
            places = np.arange(first, len(sequence) - 1)
            index.append(places * len(rows) + row)
            targets.append(sequence[first + 1 :])
            row_of.append(np.full(len(places), row))
            column_of.append(places - first)
        margins = [0.0 if pair == _FILLER else self.arrays.reward_margins[pair] for pair in pairs]
        return MicroBatch(
            tokens=torch.from_numpy(tokens),
            response_index=_flat(index),
            targets=_flat(targets),
            row=_flat(row_of),
            column=_flat(column_of),
            valid=torch.from_numpy(pairs != _FILLER),
            reward_margin=torch.tensor(margins, dtype=torch.float32),
        )


def _flat(parts: list[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.concatenate(parts or [np.zeros(0)]).astype(np.int64))
