"""Random pairs, their reference and the objective; the same for the worker and for the plain computation."""

import math

import numpy as np

from nemo_minordpo.core.losses import Options
from nemo_minordpo.core.pair_packing import PackedRow, PairTokens, lay_out, num_shared_tokens
from tests.losses import options_with

VOCABULARY, ROW_LENGTH, PAIRS_PER_ROW, NUM_PAIRS = 256, 64, 2, 8
STEPS, LEARNING_RATE, CLIP = 5, 0.1, 1.0
LOSS = "minordpo"


def options() -> Options:
    return options_with(beta=0.3)


def pairs() -> list[PairTokens]:
    random = np.random.default_rng(3)
    made = []
    for number in range(NUM_PAIRS):
        prompt, shared = random.integers(0, VOCABULARY, 4 + number % 3), random.integers(0, VOCABULARY, number % 4)
        tails = random.integers(0, 128, 3 + number % 5), random.integers(128, VOCABULARY, 2 + number % 4)
        chosen, rejected = (np.concatenate([prompt, shared, tail]) for tail in tails)
        made.append(PairTokens(chosen, rejected, len(prompt), num_shared_tokens(chosen, rejected)))
    return made


def reference_of(some: list[PairTokens]) -> list[float]:
    """Log-probabilities of chosen, then rejected responses, near those of a model with random weights."""
    lengths = [len(pair.chosen) - pair.num_prompt for pair in some]
    lengths += [len(pair.rejected) - pair.num_prompt for pair in some]
    return [-length * math.log(VOCABULARY) + 0.3 * math.sin(length) for length in lengths]


def rows() -> list[tuple[PackedRow[np.ndarray], list[float]]]:
    """The rows of a step, with the reference of their pairs."""
    every = pairs()
    parts = [every[start : start + PAIRS_PER_ROW] for start in range(0, NUM_PAIRS, PAIRS_PER_ROW)]
    return [(lay_out(part, length=ROW_LENGTH, pad_id=0), reference_of(part)) for part in parts]
