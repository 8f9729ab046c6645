"""Layout of preference pairs in a row: a pair's shared tokens appear once, and many pairs share a row.

A pair is one segment of a row::

    place      start            branch          chosen_end            end
                 | shared tokens  | chosen tail    | rejected tail      |
    position     0 ...            k ...            k ...

k is the index of the first token where the two sequences (prompt, response, EOS) differ, at the start of the responses
or later. The last token of a sequence is only ever a target and has no place. The rejected tail continues from the
shared tokens: its rotary positions restart at k, and it does not see the chosen tail. So every token has exactly the
hidden state that it would have in a separate sequence, and shared response tokens are computed once and credited to
both sums.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np

Array = TypeVar("Array")
Other = TypeVar("Other")


@dataclass(frozen=True)
class PairTokens:
    """A tokenised pair.

    chosen, rejected: [tokens], including their common prompt.
    num_prompt: tokens in the prompt, >= 1.
    num_shared: k >= num_prompt, tokens before the first difference.
    """

    chosen: np.ndarray
    rejected: np.ndarray
    num_prompt: int
    num_shared: int


@dataclass(frozen=True)
class PackedRow(Generic[Array]):
    """m pairs in a row of S places; T = log-probabilities that the pairs need, C = tokens of the longest response.

    NumPy arrays when laid out, tensors when the model computes with it.

    tokens: [S], token ids, with padding at the end.
    positions: [S], positions for rotary or learned embeddings.
    segments: [m, 4]: start, branch, chosen_end, end of each pair (see the module docstring).
    places: [T], the place with the hidden state that predicts each response token; the last shared token predicts two.
    targets: [T], the ids of these response tokens.
    credits: [2 m, C], indices into the T log-probabilities that each response sums, chosen responses first; padded
        with T.
    """

    tokens: Array
    positions: Array
    segments: Array
    places: Array
    targets: Array
    credits: Array

    def mapped(self, function: Callable[[Array], Other]) -> "PackedRow[Other]":
        """Apply a function to every array."""
        return PackedRow(**{name: function(array) for name, array in vars(self).items()})


def num_shared_tokens(chosen: np.ndarray, rejected: np.ndarray) -> int:
    """Length of the common prefix of two sequences."""
    shorter = min(len(chosen), len(rejected))
    different = np.flatnonzero(chosen[:shorter] != rejected[:shorter])
    return int(different[0]) if len(different) else shorter


def segment_lengths(*, num_chosen: np.ndarray, num_rejected: np.ndarray, num_shared: np.ndarray) -> np.ndarray:
    """Places that pairs take, [N]: ``k + max(0, chosen - 1 - k) + max(0, rejected - 1 - k)``."""
    return num_shared + np.maximum(num_chosen - 1 - num_shared, 0) + np.maximum(num_rejected - 1 - num_shared, 0)


def row_multiple(*, tensor_parallel: int, sequence_parallel: bool, fp8: bool) -> int:
    """The number that a row's length must be divisible by: the least common multiple of all requirements.

    Tensor cores need 8 and FP8 matrix products 16. Sequence parallelism splits the row over the ranks, and with FP8
    each part must be a multiple of 8.
    """
    split = tensor_parallel if sequence_parallel else 1
    return math.lcm(8, 16 if fp8 else 1, split * (8 if fp8 else 1))


def pack(lengths: np.ndarray, *, capacity: int, num_rows_multiple: int = 1) -> list[list[int]]:
    """Assign items to rows: as few rows as first-fit decreasing needs, then as equal as possible.

    All rows of a step are padded to the longest, so the longest row sets the cost. MULTIFIT (Coffman, Garey and Johnson
    1978) searches for the smallest capacity at which first-fit decreasing needs no more rows.

    Args:
        lengths: [n], places; none exceeds ``capacity``.
        capacity: places per row.
        num_rows_multiple: data-parallel size, since every rank needs the same number of rows.

    Returns:
        Rows of indices into ``lengths``, padded with empty rows to the multiple.
    """
    order = np.argsort(-lengths, kind="stable")
    rows = _first_fit(order, lengths, capacity)
    num_rows = max(math.ceil(len(rows) / num_rows_multiple), 1) * num_rows_multiple
    low, high = max(math.ceil(lengths.sum() / num_rows), int(lengths.max(initial=0))), capacity
    while low < high:
        middle = (low + high) // 2
        tried = _first_fit(order, lengths, middle)
        if len(tried) <= num_rows:
            rows, high = tried, middle
        else:
            low = middle + 1
    return rows + [[] for _ in range(num_rows - len(rows))]


def _first_fit(order: np.ndarray, lengths: np.ndarray, capacity: int) -> list[list[int]]:
    rows: list[list[int]] = []
    free = np.zeros(0, dtype=np.int64)
    for item in order:
        fits = np.flatnonzero(free >= lengths[item])
        if len(fits):
            row = fits[0]
        else:
            row, free = len(rows), np.append(free, capacity)
            rows.append([])
        rows[row].append(int(item))
        free[row] -= lengths[item]
    return rows


def lay_out(pairs: list[PairTokens], *, length: int, pad_id: int) -> PackedRow[np.ndarray]:
    """Lay out pairs one after another in a row of ``length`` places."""
    tokens = np.full(length, pad_id, dtype=np.int64)
    positions = np.zeros(length, dtype=np.int64)
    segments = np.zeros((len(pairs), 4), dtype=np.int64)
    places, targets, credits = [], [], []
    start, num_targets = 0, 0
    for number, pair in enumerate(pairs):
        shared = pair.num_shared
        tails = [pair.chosen[shared:-1], pair.rejected[shared:-1]]
        bounds = np.cumsum([start, shared, len(tails[0]), len(tails[1])])
        segments[number] = bounds
        end = int(bounds[-1])
        tokens[start:end] = np.concatenate([pair.chosen[:shared], *tails])
        positions[start:end] = np.concatenate(
            [np.arange(shared), *(np.arange(shared, shared + len(tail)) for tail in tails)]
        )
        common = np.arange(pair.num_prompt, shared)
        places.append(start + common - 1)
        targets.append(pair.chosen[pair.num_prompt : shared])
        in_common = num_targets + np.arange(len(common))
        num_targets += len(common)
        for tail_start, sequence in ((bounds[1], pair.chosen), (bounds[2], pair.rejected)):
            after = sequence[shared:]
            # the last shared token predicts the first token of a tail; each tail token predicts the next
            places.append(np.concatenate([[start + shared - 1], tail_start + np.arange(len(after) - 1)])[: len(after)])
            targets.append(after)
            credits.append(np.concatenate([in_common, num_targets + np.arange(len(after))]))
            num_targets += len(after)
        start = end
    return PackedRow(
        tokens=tokens,
        positions=positions,
        segments=segments,
        places=_joined(places),
        targets=_joined(targets),
        credits=_credit_matrix(credits[0::2] + credits[1::2], num_targets),
    )


def may_attend(segments: np.ndarray, length: int) -> np.ndarray:
    """The attention mask of the layout, [S, S]: True where the query place (first axis) sees the key place.

    The reference definition; attention itself never builds it.
    """
    mask = np.zeros((length, length), dtype=bool)
    for start, branch, chosen_end, end in segments:
        mask[start:end, start:end] = np.tri(end - start, dtype=bool)
        mask[chosen_end:end, branch:chosen_end] = False
    return mask


def _credit_matrix(credits: list[np.ndarray], num_targets: int) -> np.ndarray:
    longest = max(map(len, credits), default=0)
    matrix = np.full((len(credits), longest), num_targets, dtype=np.int64)
    for row, entries in zip(matrix, credits, strict=True):
        row[: len(entries)] = entries
    return matrix


def _joined(parts: list[np.ndarray]) -> np.ndarray:
    return np.concatenate([np.zeros(0, dtype=np.int64), *parts]).astype(np.int64)
