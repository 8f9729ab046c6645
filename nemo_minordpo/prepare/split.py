"""Assign each pair to training or validation, or leave it out in favour of an earlier one."""

import numpy as np

from nemo_minordpo.errors import UserError

TRAIN, VALIDATION, DUPLICATE, SAME_QUESTION = range(4)


def decide(
    *, texts: np.ndarray, questions: np.ndarray, num_validation: int, one_per_question: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Decide the fate of P pairs, in row order.

    Args:
        texts: [P] digests, equal for equal pairs.
        questions: [P] digests, equal for pairs of the same question.
        num_validation: pairs to hold out.
        one_per_question: use only the first pair of each question.

    Returns:
        ([P] TRAIN, VALIDATION, DUPLICATE or SAME_QUESTION, [P] the earlier pair that replaces a left-out one).

    Raises:
        UserError: no pair would be left for training, or none could be held out.
    """
    first = first_of_each(texts)
    fate = np.where(first == np.arange(len(first)), TRAIN, DUPLICATE)
    if one_per_question:
        (kept,) = np.nonzero(fate == TRAIN)
        first_kept = kept[first_of_each(questions[kept])]
        fate[kept[first_kept != kept]] = SAME_QUESTION
        first[kept] = first_kept
    (kept,) = np.nonzero(fate == TRAIN)
    fate[kept[_held_out(questions[kept], num_validation=num_validation)]] = VALIDATION
    return fate, first


def first_of_each(digests: np.ndarray) -> np.ndarray:
    """[N]: the index of the first entry equal to each entry."""
    _, first, inverse = np.unique(digests, return_index=True, return_inverse=True)
    return first[inverse.reshape(-1)]


def _held_out(questions: np.ndarray, *, num_validation: int) -> np.ndarray:
    """[N] bool: the pairs for validation; all pairs of a question are on one side.

    Questions are taken in the order of their digests, which depends on the seed, if their pairs still fit. Fewer than
    `num_validation` pairs are held out if every remaining question has more pairs than there is room for.
    """
    digests, inverse, sizes = np.unique(questions, return_inverse=True, return_counts=True)
    taken = np.zeros(len(digests), dtype=bool)
    room = num_validation
    for place, size in enumerate(sizes.tolist()):
        if not room:
            break
        if size <= room:
            taken[place] = True
            room -= size
    if num_validation >= len(questions) or room == num_validation > 0:
        raise UserError(
            f"num_validation is {num_validation}, but there are {len(questions)} pairs of {len(digests)} questions, "
            "and a question stays on one side: hold out fewer, or read more rows"
        )
    return taken[inverse.reshape(-1)]
