"""For each pair, the earlier one that it repeats, exactly or nearly: in time N log N and a fixed memory per pair."""

from collections.abc import Callable, Iterator

import numpy as np

from nemo_minordpo.inspect.shingles import EMPTY, SKETCH, similarity
from nemo_minordpo.prepare.split import first_of_each

NEAR = 0.8  # similarity from which texts are nearly the same
NO_PAIR = -1
_ROWS = 4  # hash functions per band: texts of similarity 0.8 share one of the 16 bands with probability 0.9998
_BLOCK = 1 << 16

# (pairs, as many earlier ones) -> which of them are nearly the same
Alike = Callable[[np.ndarray, np.ndarray], np.ndarray]


def earlier_equal(digests: np.ndarray) -> np.ndarray:
    """[N]: the first pair with the same digest if it is an earlier one, else NO_PAIR."""
    first = first_of_each(digests)
    return np.where(first < np.arange(len(first)), first, NO_PAIR)


def earlier_in_other_file(digests: np.ndarray, *, files: np.ndarray) -> np.ndarray:
    """[N]: the first pair with the same digest if it is in an earlier file, else NO_PAIR."""
    first = earlier_equal(digests)
    return np.where((first != NO_PAIR) & (files[first] != files), first, NO_PAIR)


def near_prompts(pairs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each pair, an earlier one with almost the same prompt, and one in an earlier file; else NO_PAIR: [N] each.

    Prompts that are equal to an earlier one are compared once, and found for all.

    Args:
        pairs: [N], measuring.PAIR, in order.
    """
    sketches = pairs["sketches"][:, 0]
    first = first_of_each(pairs["prompt"])
    (unique,) = np.nonzero((first == np.arange(len(first))) & (sketches != EMPTY).any(axis=1))
    return _earlier(
        sketches,
        unique,
        files=pairs["file"],
        alike=lambda one, other: similarity(sketches[one], sketches[other]) >= NEAR,
    )


def near_pairs(pairs: np.ndarray) -> np.ndarray:
    """For each pair, an earlier one with almost the same prompt and almost the same responses; else NO_PAIR: [N].

    Args:
        pairs: [N], measuring.PAIR, in order.
    """
    sketches = pairs["sketches"]
    (unique,) = np.nonzero(earlier_equal(pairs["texts"]) == NO_PAIR)

    def alike(one: np.ndarray, other: np.ndarray) -> np.ndarray:
        prompts, responses = (similarity(sketches[one, part], sketches[other, part]) >= NEAR for part in (0, 1))
        # all of a prompt may be what most prompts share
        empty = (sketches[one, 0] == EMPTY).all(axis=1)
        return responses & np.where(empty, pairs["prompt"][one] == pairs["prompt"][other], prompts)

    return _earlier(sketches.min(axis=1), unique, files=pairs["file"], alike=alike)[0]


def _earlier(
    sketches: np.ndarray, chosen: np.ndarray, *, files: np.ndarray, alike: Alike
) -> tuple[np.ndarray, np.ndarray]:
    """The earliest alike pair found for each of the `chosen` ones, and the earliest in an earlier file."""
    nothing = np.iinfo(np.int64).max
    found, in_other = np.full(len(sketches), nothing), np.full(len(sketches), nothing)
    for later, earlier in _candidates(sketches[chosen]):
        for start in range(0, len(later), _BLOCK):
            one, other = chosen[later[start : start + _BLOCK]], chosen[earlier[start : start + _BLOCK]]
            same = alike(one, other)
            one, other = one[same], other[same]
            np.minimum.at(found, one, other)
            elsewhere = files[one] != files[other]
            np.minimum.at(in_other, one[elsewhere], other[elsewhere])
    return np.where(found == nothing, NO_PAIR, found), np.where(in_other == nothing, NO_PAIR, in_other)


def _candidates(sketches: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pairs of texts that share a band of their sketches: (later, earlier).

    Each text is compared with the first and with the previous one that shares the band, so that a thousand copies of a
    text take a thousand comparisons, not half a million.
    """
    for band in range(0, SKETCH, _ROWS):
        halves = np.ascontiguousarray(sketches[:, band : band + _ROWS]).view(np.uint64)
        keys = halves[:, 0] * np.uint64(0x9E3779B97F4A7C15) ^ halves[:, 1]
        order = np.argsort(keys, kind="stable")
        equal = keys[order[1:]] == keys[order[:-1]]
        later, previous = order[1:][equal], order[:-1][equal]
        starts = np.maximum.accumulate(np.where(np.concatenate([[False], equal]), 0, np.arange(len(order))))
        yield later, previous
        yield later, order[starts[1:][equal]]
