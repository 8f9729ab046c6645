"""The layout worked by hand, and inverted: from a row, reconstruct the sequence behind every prediction."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemo_minordpo.core.pair_packing import (
    PairTokens,
    lay_out,
    may_attend,
    num_shared_tokens,
    pack,
    row_multiple,
    segment_lengths,
)


def pair_of(prompt, chosen, rejected):
    sequences = np.asarray(prompt + chosen), np.asarray(prompt + rejected)
    return PairTokens(*sequences, num_prompt=len(prompt), num_shared=num_shared_tokens(*sequences))


def length_of(pair):
    return int(
        segment_lengths(
            num_chosen=np.asarray([len(pair.chosen)]),
            num_rejected=np.asarray([len(pair.rejected)]),
            num_shared=np.asarray([pair.num_shared]),
        )[0]
    )


def separate(pair):
    """For each response: the context from which a model that sees only its sequence predicts each token."""
    return [
        [
            (tuple(sequence[:place]), tuple(range(place)), place - 1, sequence[place])
            for place in range(pair.num_prompt, len(sequence))
        ]
        for sequence in (pair.chosen.tolist(), pair.rejected.tolist())
    ]


def rebuilt(row, mask):
    """For each response: (visible tokens, their positions, own position, target) of each of its credits."""
    responses = []
    for credits in row.credits:
        entries = credits[credits < len(row.targets)]
        places = row.places[entries]
        visible = [np.flatnonzero(mask[place]) for place in places]
        responses.append(
            [
                (tuple(row.tokens[seen]), tuple(row.positions[seen]), row.positions[place], target)
                for seen, place, target in zip(visible, places, row.targets[entries], strict=True)
            ]
        )
    return responses


def expected_of(pairs):
    both = [separate(pair) for pair in pairs]
    return [chosen for chosen, _ in both] + [rejected for _, rejected in both]


# prompt, chosen response, rejected response
CASES = {
    "no shared response token": ([1, 2], [3, 4, 5], [6, 7]),
    "all but the last token shared": ([1, 2], [3, 4, 5], [3, 4, 6]),
    "chosen a prefix of rejected": ([1], [3, 4], [3, 4, 5, 6]),
    "rejected a prefix of chosen": ([1], [3, 4, 5, 6], [3, 4]),
    "chosen a prefix of rejected, one longer": ([1, 2], [3, 4], [3, 4, 5]),
    "rejected a prefix of chosen, one longer": ([1, 2], [3, 4, 5], [3, 4]),
    "one-token responses": ([1, 2], [3], [4]),
    "one-token chosen response": ([1], [3], [4, 5, 6]),
    "one-token rejected response": ([1], [4, 5, 6], [3]),
    "some shared, two tails": ([1, 2], [3, 4, 5, 6], [3, 7, 8, 9, 1]),
}


@st.composite
def pairs_of_tokens(draw):
    """All the shapes of CASES; the small alphabet causes repeated tokens, and tails begin with different ones."""
    some = st.lists(st.integers(1, 4), max_size=5)
    prompt, shared = draw(st.lists(st.integers(1, 4), min_size=1, max_size=5)), draw(some)
    chosen = draw(st.just([]) | some.map(lambda more: [5, *more])) if shared else [5, *draw(some)]
    rejected = draw(st.just([]) | some.map(lambda more: [6, *more])) if shared and chosen else [6, *draw(some)]
    return pair_of(prompt, shared + chosen, shared + rejected)


def test_a_row_worked_by_hand():
    pairs = [
        pair_of([1, 2], [3, 4, 5], [3, 6]),  # shared: 1 2 3, tails: 4 (5) and (6)
        pair_of([7], [8], [9, 10, 11]),  # shared: 7, tails: (8) and 9 10 (11)
        pair_of([12], [13, 14, 15], [16, 17, 18]),  # shared: 12, tails: 13 14 (15) and 16 17 (18)
    ]
    row = lay_out(pairs, length=14, pad_id=99)
    assert row.tokens.tolist() == [1, 2, 3, 4, 7, 9, 10, 12, 13, 14, 16, 17, 99, 99]
    assert row.positions.tolist() == [0, 1, 2, 3, 0, 1, 2, 0, 1, 2, 1, 2, 0, 0]
    assert row.segments.tolist() == [[0, 3, 4, 4], [4, 5, 5, 7], [7, 8, 10, 12]]
    assert row.targets.tolist() == [3, 4, 5, 6, 8, 9, 10, 11, 13, 14, 15, 16, 17, 18]
    assert row.places.tolist() == [1, 2, 3, 2, 4, 4, 5, 6, 7, 8, 9, 7, 10, 11]
    nothing = 14
    assert row.credits.tolist() == [
        [0, 1, 2],
        [4, nothing, nothing],
        [8, 9, 10],
        [0, 3, nothing],
        [5, 6, 7],
        [11, 12, 13],
    ]
    assert {array.dtype for array in vars(row).values()} == {np.dtype(np.int64)}


def test_the_mask_worked_by_hand():
    mask = may_attend(np.asarray([[0, 1, 3, 5]]), 7).astype(int)
    assert mask.tolist() == [
        [1, 0, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0, 0],
        [1, 0, 0, 1, 0, 0, 0],
        [1, 0, 0, 1, 1, 0, 0],
        [0, 0, 0, 0, 0, 0, 0],
        [0, 0, 0, 0, 0, 0, 0],
    ]


@pytest.mark.parametrize("name", CASES)
def test_every_token_is_predicted_from_its_own_sequence(name):
    pair = pair_of(*CASES[name])
    row = lay_out([pair], length=length_of(pair) + 2, pad_id=99)
    assert rebuilt(row, may_attend(row.segments, len(row.tokens))) == expected_of([pair])


def test_all_cases_in_one_row():
    pairs = [pair_of(*case) for case in CASES.values()]
    row = lay_out(pairs, length=sum(map(length_of, pairs)), pad_id=99)
    assert 99 not in row.tokens
    assert rebuilt(row, may_attend(row.segments, len(row.tokens))) == expected_of(pairs)


@given(pairs=st.lists(pairs_of_tokens(), max_size=6), padding=st.integers(0, 3))
def test_rebuilt_from_a_row_of_any_pairs(pairs, padding):
    used = sum(map(length_of, pairs))
    row = lay_out(pairs, length=used + padding, pad_id=99)
    assert rebuilt(row, may_attend(row.segments, len(row.tokens))) == expected_of(pairs)
    assert row.tokens[used:].tolist() == [99] * padding
    assert row.segments[:, 3].max(initial=0) == used
    distinct = sum(len(side) for pair in pairs for side in separate(pair)) - sum(
        pair.num_shared - pair.num_prompt for pair in pairs
    )
    assert len(row.places) == len(row.targets) == distinct


def test_a_rejected_tail_that_saw_the_chosen_one_would_be_noticed():
    pair = pair_of(*CASES["some shared, two tails"])
    row = lay_out([pair], length=length_of(pair), pad_id=99)
    causal = np.tri(len(row.tokens), dtype=bool)
    chosen, rejected = rebuilt(row, causal)
    assert chosen == separate(pair)[0]
    assert rejected != separate(pair)[1]


@pytest.mark.parametrize("name", CASES)
def test_the_length_is_that_of_the_layout(name):
    pair = pair_of(*CASES[name])
    row = lay_out([pair], length=40, pad_id=99)
    assert length_of(pair) == row.segments[0, 3] == np.count_nonzero(row.tokens != 99)


def test_lengths_worked_by_hand():
    lengths = segment_lengths(
        num_chosen=np.asarray([5, 2, 4, 6]), num_rejected=np.asarray([4, 4, 4, 4]), num_shared=np.asarray([3, 1, 3, 4])
    )
    assert lengths.tolist() == [3 + 1 + 0, 1 + 0 + 2, 3 + 0 + 0, 4 + 1 + 0]


def test_a_row_without_pairs_is_padding():
    row = lay_out([], length=3, pad_id=9)
    assert row.tokens.tolist() == [9, 9, 9]
    assert row.positions.tolist() == [0, 0, 0]
    assert [array.shape for array in (row.segments, row.places, row.targets, row.credits)] == [
        (0, 4),
        (0,),
        (0,),
        (0, 0),
    ]
    assert not may_attend(row.segments, 3).any()


@pytest.mark.parametrize(
    ("chosen", "rejected", "shared"),
    [
        ([1, 2, 3], [1, 2, 4], 2),
        ([1, 2], [1, 2, 3], 2),
        ([1, 2, 3], [1], 1),
        ([1, 2], [3, 2], 0),
        ([1, 2, 1], [1, 3, 1], 1),
    ],
)
def test_shared_tokens_end_at_the_first_difference(chosen, rejected, shared):
    assert num_shared_tokens(np.asarray(chosen), np.asarray(rejected)) == shared


def first_fit_decreasing(lengths, capacity):
    rows = []
    for length in sorted(lengths, reverse=True):
        for row in rows:
            if sum(row) + length <= capacity:
                row.append(length)
                break
        else:
            rows.append([length])
    return rows


def packed(lengths, **sizes):
    return pack(np.asarray(lengths, dtype=np.int64), **sizes)


def longest_of(rows, lengths):
    return max(sum(lengths[item] for item in row) for row in rows)


@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=30),
    spare=st.integers(0, 80),
    multiple=st.sampled_from([1, 2, 3, 4]),
)
def test_rows_hold_every_item_once_and_are_no_more_than_first_fit_needs(lengths, spare, multiple):
    capacity = max(lengths) + spare
    rows = packed(lengths, capacity=capacity, num_rows_multiple=multiple)
    plain = first_fit_decreasing(lengths, capacity)
    assert sorted(item for row in rows for item in row) == list(range(len(lengths)))
    assert len(rows) == math.ceil(len(plain) / multiple) * multiple
    longest = longest_of(rows, lengths)
    assert max(math.ceil(sum(lengths) / len(rows)), max(lengths)) <= longest <= max(map(sum, plain)) <= capacity
    assert packed(lengths, capacity=capacity, num_rows_multiple=multiple) == rows


@given(lengths=st.lists(st.integers(1, 12), min_size=1, max_size=6), num_rows=st.sampled_from([2, 3]))
def test_the_longest_row_is_near_the_shortest_possible(lengths, num_rows):
    """MULTIFIT is within 13/11 of the optimum (Yue 1990), found here by trying every assignment of items to rows."""
    best = min(
        max(sum(length for length, row in zip(lengths, places, strict=True) if row == here) for here in range(num_rows))
        for places in itertools.product(range(num_rows), repeat=len(lengths))
    )
    rows = packed(lengths, capacity=sum(lengths), num_rows_multiple=num_rows)
    assert len(rows) == num_rows
    assert best <= longest_of(rows, lengths) <= math.ceil(13 / 11 * best)


@pytest.mark.parametrize(
    ("lengths", "capacity", "multiple", "rows"),
    [
        ([4, 4, 4, 4], 12, 1, [[0, 1], [2, 3]]),  # not three and one
        ([3, 5, 2], 10, 1, [[1, 0, 2]]),
        ([3, 5, 2], 9, 1, [[1], [0, 2]]),
        ([5, 5], 10, 2, [[0], [1]]),  # one row would suffice, but two ranks have one each
        ([5], 10, 2, [[0], []]),
        ([6, 6, 6], 6, 2, [[0], [1], [2], []]),
        ([], 10, 1, [[]]),
        ([], 10, 3, [[], [], []]),
    ],
)
def test_rows_worked_by_hand(lengths, capacity, multiple, rows):
    assert packed(lengths, capacity=capacity, num_rows_multiple=multiple) == rows


@pytest.mark.parametrize(
    ("tensor_parallel", "sequence_parallel", "fp8", "multiple"),
    [
        (1, False, False, 8),
        (8, False, False, 8),
        (16, False, False, 8),
        (1, True, False, 8),
        (2, True, False, 8),
        (3, True, False, 24),
        (16, True, False, 16),
        (1, False, True, 16),
        (4, False, True, 16),
        (1, True, True, 16),
        (2, True, True, 16),
        (3, True, True, 48),
        (4, True, True, 32),
    ],
)
def test_row_multiples(tensor_parallel, sequence_parallel, fp8, multiple):
    assert row_multiple(tensor_parallel=tensor_parallel, sequence_parallel=sequence_parallel, fp8=fp8) == multiple
