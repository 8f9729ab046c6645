"""The order of the data and the contents of micro-batches, worked by hand and against an obvious count."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nemo_minordpo.core.flops import StepWork
from nemo_minordpo.core.pair_packing import may_attend
from nemo_minordpo.train.data.dataset import pairs_of_step, segment_lengths_of, split_pairs, steps_per_epoch

from .arrays import PAIRS, arrays_of, batches_of


def of_all_ranks(pairs, size, **options):
    """The first step's batch of each data-parallel rank."""
    return [next(batches_of(pairs, rank=rank, size=size, **options).in_file_order()) for rank in range(size)]


def test_a_micro_batch_worked_by_hand():
    references = np.asarray([[-1.0, -2.0], [-3.0, -4.0]])
    (batch,) = batches_of(PAIRS[:2], multiple=8, references=references).in_file_order()
    (micro,) = batch.micro_batches
    assert micro.pairs.tolist() == micro.in_step.tolist() == [0, 1]
    assert micro.row.tokens.tolist() == [1, 2, 3, 4, 7, 9, 10, 11]
    assert micro.row.positions.tolist() == [0, 1, 2, 3, 0, 1, 2, 3]
    assert micro.row.segments.tolist() == [[0, 3, 4, 4], [4, 5, 5, 8]]
    assert micro.row.places.tolist() == [1, 2, 3, 2, 4, 4, 5, 6, 7]
    assert micro.row.targets.tolist() == [3, 4, 5, 6, 8, 9, 10, 11, 12]
    assert micro.row.credits.tolist() == [[0, 1, 2, 9], [4, 9, 9, 9], [0, 3, 9, 9], [5, 6, 7, 8]]
    assert micro.reward_margin.tolist() == [0.0, 1.0]
    assert micro.reference_log_probs.tolist() == [-1.0, -3.0, -2.0, -4.0]
    assert (batch.row_length, batch.num_global_pairs) == (8, 2)
    assert batch.work == StepWork(
        pairs=2, unique_tokens=8, equivalent_tokens=5 + 4 + 2 + 5, attended=10 + 10, targets=9, places=8
    )


@pytest.mark.parametrize(
    ("capacity", "multiple", "rows", "row_length"),
    [
        (18, 1, [[2, 3, 0, 1]], 18),
        (18, 8, [[2, 3, 0, 1]], 24),
        (17, 1, [[2, 0], [3, 1]], 9),  # not three pairs and one
        (9, 8, [[2, 0], [3, 1]], 16),
        (8, 1, [[2], [3], [0, 1]], 8),
        (5, 1, [[2], [3], [0], [1]], 5),
        (5, 8, [[2], [3], [0], [1]], 8),
    ],
)
def test_rows_worked_by_hand(capacity, multiple, rows, row_length):
    (batch,) = batches_of(PAIRS, capacity=capacity, multiple=multiple).in_file_order()
    assert [micro.pairs.tolist() for micro in batch.micro_batches] == rows
    assert batch.row_length == row_length
    assert {micro.row.tokens.shape for micro in batch.micro_batches} == {(row_length,)}
    assert batch.work.places == len(rows) * row_length


def test_ranks_share_the_rows_of_a_step():
    whole = of_all_ranks(PAIRS[:3], 1, capacity=5)[0]
    assert [micro.pairs.tolist() for micro in whole.micro_batches] == [[2], [0], [1]]
    parts = of_all_ranks(PAIRS[:3], 2, capacity=5)
    assert [[micro.pairs.tolist() for micro in part.micro_batches] for part in parts] == [[[2], [1]], [[0], []]]
    assert {(part.num_global_pairs, part.row_length) for part in parts} == {(3, 5)}
    assert {part.work.pairs for part in parts} == {3}
    assert {part.work.places for part in parts} == {4 * 5}


def test_a_row_without_pairs_contributes_nothing():
    _, part = of_all_ranks(PAIRS[:1], 2, references=np.asarray([[-1.0, -2.0]]))
    (micro,) = part.micro_batches
    assert micro.row.tokens.tolist() == [0] * part.row_length
    assert micro.row.credits.shape == (0, 0)
    for values in (micro.pairs, micro.row.segments, micro.row.places, micro.row.targets, micro.reward_margin):
        assert len(values) == 0
    assert micro.reference_log_probs.shape == (0,)


def counted(batches, pairs):
    """StepWork counted from the rows of all ranks, with the full mask."""
    rows = [micro for batch in batches for micro in batch.micro_batches]
    masks = [may_attend(micro.row.segments.numpy(), len(micro.row.tokens)) for micro in rows]
    return StepWork(
        pairs=sum(len(micro.pairs) for micro in rows),
        unique_tokens=sum(int(mask.any(axis=1).sum()) for mask in masks),
        equivalent_tokens=sum(2 * len(prompt) + len(chosen) + len(rejected) for prompt, chosen, rejected in pairs),
        attended=sum(int(mask.sum()) for mask in masks),
        targets=sum(len(micro.row.targets) for micro in rows),
        places=sum(micro.row.tokens.numel() for micro in rows),
    )


@st.composite
def token_pairs(draw):
    some = st.lists(st.integers(1, 5), max_size=6)
    prompt = draw(st.lists(st.integers(1, 5), min_size=1, max_size=6))
    shared = draw(some)
    sides = draw(st.sampled_from([([6], [7]), ([], [7]), ([6], [])] if shared else [([6], [7])]))
    return prompt, *(shared + side + (draw(some) if side else []) for side in sides)


@given(
    pairs=st.lists(token_pairs(), min_size=1, max_size=8),
    spare=st.integers(0, 30),
    multiple=st.sampled_from([1, 8, 24]),
    size=st.sampled_from([1, 2, 4]),
)
def test_the_work_of_a_step_matches_its_rows(pairs, spare, multiple, size):
    lengths = segment_lengths_of(arrays_of(pairs))
    capacity = int(lengths.max()) + spare
    parts = of_all_ranks(pairs, size, global_batch=8, capacity=capacity, multiple=multiple)
    assert [part.work for part in parts] == [counted(parts, pairs)] * size
    assert len({(len(part.micro_batches), part.row_length) for part in parts}) == 1
    row_length = parts[0].row_length
    longest = max(int(lengths[micro.pairs].sum()) for part in parts for micro in part.micro_batches)
    assert row_length % multiple == 0
    assert longest <= row_length < longest + multiple
    assert longest <= capacity


@given(
    num_pairs=st.integers(1, 40),
    global_batch=st.integers(1, 16),
    seed=st.integers(1, 5),
    size=st.sampled_from([1, 2, 4]),
    capacity=st.sampled_from([1, 2, 7]),
)
def test_an_epoch_sees_every_pair_once_whatever_the_layout(num_pairs, global_batch, seed, size, capacity):
    pairs = [([1], [2 + number], [1]) for number in range(num_pairs)]
    steps = steps_per_epoch(num_pairs, global_batch)
    orders = []
    for epoch in range(2):
        seen = []
        for step in range(epoch * steps, (epoch + 1) * steps):
            expected = pairs_of_step(step, num_pairs=num_pairs, global_batch_size=global_batch, seed=seed)
            here = []
            for rank in range(size):
                batches = batches_of(pairs, global_batch=global_batch, capacity=capacity, rank=rank, size=size)
                batch = batches.training_step(step, seed=seed)
                assert batch.num_global_pairs == len(expected)
                for micro in batch.micro_batches:
                    firsts = [micro.row.targets[credits[0]] for credits in split_pairs(micro.row.credits)[0]]
                    assert [int(target) - 2 for target in firsts] == micro.pairs.tolist()
                    assert expected[micro.in_step].tolist() == micro.pairs.tolist()
                    here += micro.pairs.tolist()
            assert sorted(here) == sorted(expected.tolist())
            seen += expected.tolist()
        assert sorted(seen) == list(range(num_pairs))
        orders.append(seen)
    if num_pairs > 8:
        assert orders[0] != orders[1]


def test_the_order_depends_on_the_seed():
    orders = [pairs_of_step(0, num_pairs=50, global_batch_size=50, seed=seed).tolist() for seed in (1, 1, 2)]
    assert orders[0] == orders[1] != orders[2]


@pytest.mark.parametrize(("limit", "sizes"), [(None, [3, 1]), (1, [3]), (5, [3, 1])])
def test_validation_can_be_limited_and_end_with_a_partial_batch(limit, sizes):
    batches = list(batches_of(PAIRS, global_batch=3).in_file_order(limit_batches=limit))
    assert [batch.num_global_pairs for batch in batches] == sizes
    seen = sorted(pair for batch in batches for micro in batch.micro_batches for pair in micro.pairs.tolist())
    assert seen == list(range(sum(sizes)))


@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("capacity", [5, 9, 18])
def test_reference_log_probs_reach_their_responses(size, capacity):
    references = np.asarray([[-10.0 * pair - 1, -10.0 * pair - 2] for pair in range(len(PAIRS))])
    seen = []
    for rank in range(size):
        batches = batches_of(PAIRS, capacity=capacity, rank=rank, size=size, references=references)
        for micro in batches.training_step(1, seed=3).micro_batches:
            assert micro.reference_log_probs.dtype == torch.float64
            chosen, rejected = split_pairs(micro.reference_log_probs)
            assert chosen.tolist() == (-10.0 * micro.pairs - 1).tolist()
            assert rejected.tolist() == (-10.0 * micro.pairs - 2).tolist()
            seen += micro.pairs.tolist()
    assert sorted(seen) == [0, 1, 2, 3]


def test_live_references_replace_cached_ones():
    (batch,) = batches_of(PAIRS, capacity=5).in_file_order()
    assert [micro.reference_log_probs for micro in batch.micro_batches] == [None] * 4
    live = [torch.full((2,), float(number)) for number in range(4)]
    filled = batch.with_references(live)
    assert all(micro.reference_log_probs is value for micro, value in zip(filled.micro_batches, live, strict=True))
    assert (filled.work, filled.row_length, filled.num_global_pairs) == (batch.work, batch.row_length, 4)
    assert batch.micro_batches[0].reference_log_probs is None
    with pytest.raises(ValueError, match="zip"):
        batch.with_references(live[:3])


@pytest.mark.parametrize("references", [None, np.zeros((4, 2))])
def test_attention_finds_the_segments_on_the_cpu(references):
    (batch,) = batches_of(PAIRS, references=references).in_file_order()
    moved = batch.micro_batches[0].to(torch.device("meta"))
    elsewhere = {name for name, value in {**vars(moved), **vars(moved.row)}.items() if getattr(value, "is_meta", False)}
    assert elsewhere == {"tokens", "positions", "places", "targets", "credits", "reward_margin"} | (
        set() if references is None else {"reference_log_probs"}
    )
    assert moved.row.segments is batch.micro_batches[0].row.segments
    assert moved.pairs is batch.micro_batches[0].pairs


def test_chosen_responses_come_first():
    chosen, rejected = split_pairs(torch.arange(6))
    assert chosen.tolist() == [0, 1, 2]
    assert rejected.tolist() == [3, 4, 5]
    assert [part.tolist() for part in split_pairs(torch.zeros(0))] == [[], []]
