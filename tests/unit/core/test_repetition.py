import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nemo_minordpo.core.repetition import degenerate_reason

# Nothing in it repeats enough for zlib, whatever its tokens.
HEALTHY = "".join(random.Random(0).choices("abcdefghijklmnopqrstuvwxyz 0123456789", k=400))

GOLD = [
    "Natalie sold 48/2 = 24 clips in May.\nIn both months she sold 48+24 = 72 clips.\nSo the answer is: 72",
    "There are 6 x 6 x 6 = 216 cubes.\nOf them 6 x 6 = 36 are red.\n216 - 36 = 180 are not.\nSo the answer is: 180",
    "Monday: 5 + 5 = 10.\nTuesday: 10 + 5 = 15.\nWednesday: 15 + 5 = 20.\nThursday: 20 + 5 = 25.\n"
    "Friday: 25 + 5 = 30.\nAltogether 10 + 15 + 20 + 25 + 30 = 100.\nSo the answer is: 100",
    "10000000 x 10 = 100000000.\nSo the answer is: 100000000",
    "1000000000000",
    "",
]


@pytest.mark.parametrize("text", GOLD)
def test_worked_answers_are_healthy(text):
    words = text.split()
    assert degenerate_reason(text, [ord(letter) for letter in text]) is None
    assert degenerate_reason(text, [words.index(word) for word in words]) is None


@pytest.mark.parametrize(
    "text",
    [
        "the " * 20,
        "So the answer is: 7\n" * 8,
        "=" * 200,
        "a, b; c. d! " * 4,
        "48 / 2" + " and so 2 * 2 = 4" * 6 + " a",
    ],
)
def test_loops_are_degenerate(text):
    assert degenerate_reason(text, [ord(letter) for letter in text]) == "loop"


def _fresh(number: int) -> list[int]:
    return list(range(1000, 1000 + number))


@pytest.mark.parametrize(("length", "reason"), [(23, None), (24, "loop")])
def test_a_loop_has_at_least_24_tokens(length, reason):
    # The fresh tokens before the loop keep the share of repeated 4-grams low.
    assert degenerate_reason(HEALTHY, _fresh(100) + [7] * length) == reason


@pytest.mark.parametrize(("repeats", "reason"), [(3.9, None), (4, "loop")])
def test_a_loop_repeats_at_least_4_times(repeats, reason):
    period = _fresh(10)
    tokens = (period * 4)[-int(10 * repeats) :]
    assert degenerate_reason(HEALTHY, list(range(100)) + tokens) == reason


@pytest.mark.parametrize(("period", "reason"), [(64, "loop"), (65, None)])
def test_the_longest_period_is_64(period, reason):
    assert degenerate_reason(HEALTHY, list(range(5000, 5500)) + _fresh(period) * 4) == reason


@pytest.mark.parametrize(("after", "reason"), [(8, "loop"), (9, None)])
def test_up_to_8_tokens_after_the_loop_are_ignored(after, reason):
    assert degenerate_reason(HEALTHY, _fresh(100) + [7] * 24 + list(range(after))) == reason


@pytest.mark.parametrize(("length", "reason"), [(165, None), (166, "repeated 4-grams")])
def test_share_of_repeated_4grams(length, reason):
    # Period 65 is not a loop. With 65 different 4-grams, 59.9 % of 162 are repeats, and 60.1 % of 163.
    assert degenerate_reason(HEALTHY, (_fresh(65) * 3)[:length]) == reason


def test_a_share_of_exactly_60_per_cent_counts():
    # 66 of 165 4-grams are different.
    assert degenerate_reason(HEALTHY, (_fresh(66) * 3)[:168]) == "repeated 4-grams"


@pytest.mark.parametrize(("length", "reason"), [(23, None), (24, "repeated 4-grams")])
def test_short_texts_may_repeat_4grams(length, reason):
    # Without its last token it would repeat, but at most 23 tokens are not a loop.
    tokens = [1, 2, 3] * 8
    tokens[length - 1 :] = [9]
    assert degenerate_reason(HEALTHY, tokens) == reason


@pytest.mark.parametrize(("length", "reason"), [(63, None), (64, "compressible")])
def test_compressible_texts(length, reason):
    assert degenerate_reason("Step 1: add. " * 100, _fresh(length)) == reason


def test_compression_needs_a_ratio_of_4():
    # 400 letters that do not repeat, doubled and fivefold: ratios on both sides of 4.
    assert degenerate_reason(HEALTHY * 2, _fresh(100)) is None
    assert degenerate_reason(HEALTHY * 5, _fresh(100)) == "compressible"


def test_invalid_unicode_is_judged_too():
    assert degenerate_reason("\ud800" * 400, _fresh(100)) == "compressible"


@settings(deadline=None)  # the machine may be busy
@given(
    before=st.lists(st.integers(0, 50000), max_size=40),
    period=st.lists(st.integers(0, 50000), min_size=1, max_size=64),
    repeats=st.integers(4, 7),
    after=st.lists(st.integers(0, 50000), max_size=8),
)
def test_every_long_loop_is_found(before, period, repeats, after):
    tokens = before + period * max(repeats, -(-24 // len(period))) + after
    assert degenerate_reason(HEALTHY, tokens) == "loop"


@settings(deadline=None)  # the machine may be busy
@given(st.lists(st.integers(0, 50000), unique=True, max_size=300))
def test_tokens_that_never_repeat_are_healthy(tokens):
    assert degenerate_reason(HEALTHY, tokens) is None
