"""The order of the data, and what a micro-batch holds, against an obvious loop."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nemo_minordpo.train.dataset import PairBatches, pairs_of_step, split_pairs, steps_per_epoch
from nemo_minordpo.train.tokens import TokenArrays


def arrays_of(pairs):
    """`pairs`: (prompt, chosen, rejected) as token lists."""
    sequences = [np.asarray(prompt + side) for prompt, *sides in pairs for side in sides]
    return TokenArrays(
        tokens=np.concatenate(sequences).astype(np.int32),
        starts=np.cumsum([0, *map(len, sequences)]),
        prompt_lengths=np.asarray([len(prompt) for prompt, *_ in pairs], dtype=np.int32),
        reward_margins=np.arange(len(pairs), dtype=np.float32),
    )


def batches_of(pairs, *, global_batch=4, micro_batch=1, rank=0, size=1, multiple=1):
    return PairBatches(
        arrays_of(pairs),
        global_batch_size=global_batch,
        micro_batch_size=micro_batch,
        data_parallel_rank=rank,
        data_parallel_size=size,
        pad_multiple=multiple,
        pad_id=0,
    )


PAIRS = [([1, 2], [3, 4, 5], [3, 6]), ([7], [8], [9, 10, 11, 12]), ([13, 14, 15], [16, 17], [18])]


def test_a_micro_batch_worked_by_hand():
    (batch,) = batches_of(PAIRS[:2], micro_batch=2, multiple=4).in_file_order(limit_batches=None)
    (micro,) = batch.micro_batches
    assert batch.seq_length == 4
    assert (batch.num_global_pairs, batch.num_global_tokens) == (2, 5 + 4 + 2 + 5)
    assert micro.tokens.tolist() == [[1, 2, 3, 4], [7, 0, 0, 0], [1, 2, 3, 0], [7, 9, 10, 11]]
    assert micro.targets.tolist() == [3, 4, 5, 8, 3, 6, 9, 10, 11, 12]
    # place j of row r lies at j * 4 + r
    assert micro.response_index.tolist() == [4, 8, 12, 1, 6, 10, 3, 7, 11, 15]
    assert micro.row.tolist() == [0, 0, 0, 1, 2, 2, 3, 3, 3, 3]
    assert micro.column.tolist() == [0, 1, 2, 0, 0, 1, 0, 1, 2, 3]
    assert micro.valid.tolist() == [True, True]
    assert micro.reward_margin.tolist() == [0.0, 1.0]


def test_every_target_follows_the_token_at_its_place():
    """The off-by-one of upstream's packing, checked from the flattened index back."""
    for batch in batches_of(PAIRS, micro_batch=1, multiple=8).in_file_order(limit_batches=None):
        for number, micro in enumerate(batch.micro_batches):
            prompt, *sides = PAIRS[number]
            rows = len(micro.tokens)
            for index, target, row in zip(micro.response_index, micro.targets, micro.row, strict=True):
                place, found_row = divmod(int(index), rows)
                assert found_row == row
                sequence = prompt + sides[int(row)]
                assert sequence[place] == micro.tokens[row, place]
                assert sequence[place + 1] == target


def test_partial_batches_are_filled_with_what_counts_nowhere():
    seen = []
    for rank in range(2):
        (batch,) = batches_of(PAIRS, micro_batch=1, rank=rank, size=2).in_file_order(limit_batches=None)
        assert batch.num_global_pairs == 3
        assert len(batch.micro_batches) == 2
        seen += [bool(micro.valid) for micro in batch.micro_batches]
        for micro in batch.micro_batches:
            if not micro.valid:
                assert micro.targets.numel() == 0
                assert micro.tokens.eq(0).all()
    assert sorted(seen) == [False, True, True, True]


@given(
    num_pairs=st.integers(1, 40),
    global_batch=st.integers(1, 16),
    seed=st.integers(1, 5),
    size=st.sampled_from([1, 2, 4]),
    micro_batch=st.sampled_from([1, 2]),
)
def test_an_epoch_sees_every_pair_once_whatever_the_layout(num_pairs, global_batch, seed, size, micro_batch):
    pairs = [([1], [2 + number], [1]) for number in range(num_pairs)]
    steps = steps_per_epoch(num_pairs, global_batch)
    orders = []
    for epoch in range(2):
        seen = []
        for step in range(epoch * steps, (epoch + 1) * steps):
            expected = pairs_of_step(step, num_pairs=num_pairs, global_batch_size=global_batch, seed=seed)
            here = []
            for rank in range(size):
                batches = batches_of(pairs, global_batch=global_batch, micro_batch=micro_batch, rank=rank, size=size)
                for micro in batches.training_step(step, seed=seed).micro_batches:
                    here += (micro.targets[micro.row < micro_batch] - 2).tolist()
            assert sorted(here) == sorted(expected.tolist())
            seen += expected.tolist()
        assert sorted(seen) == list(range(num_pairs))
        orders.append(seen)
    if num_pairs > 8:
        assert orders[0] != orders[1]


def test_the_order_depends_on_the_seed():
    orders = [pairs_of_step(0, num_pairs=50, global_batch_size=50, seed=seed).tolist() for seed in (1, 1, 2)]
    assert orders[0] == orders[1] != orders[2]


@pytest.mark.parametrize(("limit", "batches"), [(None, 2), (1, 1), (5, 2)])
def test_validation_may_be_limited(limit, batches):
    assert len(list(batches_of(PAIRS, global_batch=2).in_file_order(limit_batches=limit))) == batches


def test_chosen_rows_come_first():
    chosen, rejected = split_pairs(torch.arange(6))
    assert chosen.tolist() == [0, 1, 2]
    assert rejected.tolist() == [3, 4, 5]
