"""Near-duplicates by sketches, against exact sets of pieces compared one with another."""

import random
from functools import cache

import numpy as np
import pytest

from nemo_minordpo.inspect.duplicates import NO_PAIR, near_pairs, near_prompts
from nemo_minordpo.inspect.measuring import PAIR
from nemo_minordpo.inspect.shingles import EMPTY, SKETCH, shingles, similarity, sketch
from nemo_minordpo.prepare.chunk import question_digest
from tests.unit.inspect.test_inspect import text


@cache
def pieces(one):
    """The set that shingles() is a form of."""
    raw = " ".join(one.lower().split()).encode()
    return {raw[start : start + 8] for start in range(len(raw) - 7)}


def jaccard(one, other):
    return len(pieces(one) & pieces(other)) / len(pieces(one) | pieces(other))


def changed(seed, share):
    """A text with a share of its words replaced at its end."""
    words = text(seed, 60).split()
    left = round(len(words) * (1 - share))
    return " ".join(words[:left] + text(f"other {seed}", 60).split()[left:])


@pytest.mark.parametrize(
    "one", ["", "a", "1234567", "12345678", "123456789", "\u00e9\u4e00\U0001f600", text(1), "A  b\n" * 50]
)
def test_shingles_are_the_distinct_pieces_of_eight_bytes(one):
    expected = len(pieces(one)) if len(" ".join(one.split()).encode()) >= 8 else 1
    found = shingles(one)
    assert len(found) == expected
    assert (np.diff(found.astype(object)) > 0).all()
    assert (shingles(one.upper().replace(" ", "\t ")) == found).all()


def test_the_estimate_is_as_exact_as_its_standard_error():
    errors = []
    for share in (0.05, 0.2, 0.4):
        for seed in range(60):
            one, other = text(seed, 60), changed(seed, share)
            exact = jaccard(one, other)
            estimate = similarity(sketch(shingles(one))[None], sketch(shingles(other))[None])[0]
            errors.append((estimate - exact) / np.sqrt(exact * (1 - exact) / SKETCH))
    assert abs(np.mean(errors)) < 0.3
    assert 0.8 < np.std(errors) < 1.25


def test_the_sketch_of_a_union_is_the_minimum():
    one, other = shingles(text(1, 900)), shingles(text(2, 900))  # more than a block
    assert (sketch(np.union1d(one, other)) == np.minimum(sketch(one), sketch(other))).all()
    assert (sketch(one[:0]) == EMPTY).all()


def pairs_of(prompts, responses, files=None):
    pairs = np.zeros(len(prompts), dtype=PAIR)
    for number, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        pairs[number]["prompt"] = question_digest(prompt, seed=0)
        pairs[number]["texts"] = f"{number}".encode()
        pairs[number]["sketches"] = sketch(shingles(prompt)), sketch(shingles(response))
    pairs["file"] = 0 if files is None else files
    return pairs


def test_all_near_ones_are_found_and_no_others():
    draw = random.Random(5)
    prompts = [text(number, 60) for number in range(300)]
    for number in range(150, 300):
        share = draw.choice([0.02, 0.5, 1.0])
        prompts[number] = f"{number} {changed(draw.randrange(150), share)}"
    files = np.arange(300) // 200
    found, elsewhere = near_prompts(pairs_of(prompts, prompts, files))
    closest = [
        max((jaccard(one, prompts[other]), -other) for other in range(number))
        for number, one in enumerate(prompts)
        if number
    ]
    for number, (exact, _) in enumerate(closest, start=1):
        if not 0.65 < exact < 0.92:  # between, the estimate may fall on either side of 0.8
            assert (found[number] != NO_PAIR) == (exact > 0.8), (number, exact)
        if found[number] != NO_PAIR:
            assert found[number] < number
            assert jaccard(prompts[number], prompts[found[number]]) > 0.6
        if elsewhere[number] != NO_PAIR:
            assert (number >= 200) > (elsewhere[number] >= 200)
    assert sum(found != NO_PAIR) > 30
    assert sum(elsewhere != NO_PAIR) > 10


def test_a_thousand_copies_are_compared_with_the_first():
    found, _ = near_prompts(pairs_of([f"{text(1, 90)} {number}" for number in range(1000)], ["x"] * 1000))
    assert found[0] == NO_PAIR
    assert (found[1:] == 0).mean() > 0.99


def test_pairs_are_near_if_prompt_and_responses_are():
    prompt, response = text(1, 60), text(2, 60)
    rows = [(prompt, response), (prompt + " x", response + " y"), (prompt + " z", text(3, 60)), (text(4, 60), response)]
    assert near_pairs(pairs_of(*zip(*rows, strict=True))).tolist() == [NO_PAIR, 0, NO_PAIR, NO_PAIR]
