"""What several sampled answers to one question are worth: pass@k and maj@N."""

from collections import Counter
from collections.abc import Sequence
from fractions import Fraction
from math import comb


def pass_at_k(*, num_samples: int, num_right: int, k: int) -> float:
    """Estimate, without bias, of the chance that at least one of k answers is right: 1 - C(n - c, k) / C(n, k).

    Source: Chen et al. 2021, equation 1.

    Args:
        num_samples: n, answers that were drawn.
        num_right: c, those that are right.
        k: 1 to n.
    """
    return 1 - comb(num_samples - num_right, k) / comb(num_samples, k)


def majority_share(answers: Sequence[str | None], gold: str) -> float:
    """maj@N of one question: 1 if most answers agree on the right number, 0 if they agree on another.

    If several numbers are named equally often, each is chosen with the same chance: with m of them, one being right,
    the value is 1/m. Source: Wang et al. 2023 (self-consistency), who leave ties open.

    Args:
        answers: numbers as core/gsm8k.py normalises them; None = no answer, which has no vote.
        gold: the right number.
    """
    votes = Counter(Fraction(answer) for answer in answers if answer is not None)
    most = [number for number, count in votes.items() if count == max(votes.values())]
    return (Fraction(gold) in most) / max(len(most), 1)


def sizes_of_k(num_samples: int) -> list[int]:
    """The k for which pass@k is reported: 1, 2, 4, ... and the number of samples."""
    powers = [1 << power for power in range(num_samples.bit_length()) if 1 << power < num_samples]
    return [*powers, num_samples]
