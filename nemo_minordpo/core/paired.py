"""Do two models differ on the same problems? Paired tests of their accuracies, and Holm's correction for many of them.

Right answers count 1, wrong ones 0. N = seeds, M = problems.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import bdtr

from nemo_minordpo.core.behrens_fisher import half_width, tail
from nemo_minordpo.core.intervals import Z_95


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Accuracy of the first model minus that of the second, with a 95 % interval and a two-sided p-value."""

    value: float
    low: float
    high: float
    p: float


def mcnemar(*, only_first: int, only_second: int, total: int) -> Difference:
    """Two models, one answer each to every problem: McNemar's exact test.

    If the models are equally good, either is as likely to be the one that solves a problem which only one solves:
    p = min(1, 2 P(X <= min(b, c))), X ~ Binomial(n, 1/2), n = b + c. It is at least 2^(1-n), and 1 if n = 0.
    The interval is Wald's after adding half a problem to each cell of the 2x2 table, which keeps it from collapsing at
    b = c = 0: with B = b + 1/2, C = c + 1/2 and T = M + 2, (b - c)/T -+ z sqrt(B + C - (B - C)^2/T)/T.
    Source: McNemar 1947; interval: Agresti and Min 2005.

    Args:
        only_first: b, problems that only the first model solves.
        only_second: c, those that only the second solves.
        total: M.
    """
    discordant, gain = only_first + only_second, only_first - only_second
    p = min(1.0, 2 * float(bdtr(min(only_first, only_second), discordant, 0.5))) if discordant else 1.0
    places = total + 2
    half = Z_95 * math.sqrt(discordant + 1 - gain**2 / places) / places
    centre = gain / places
    return Difference(value=gain / total, low=max(centre - half, -1.0), high=min(centre + half, 1.0), p=p)


def over_seeds_and_problems(first: np.ndarray, second: np.ndarray) -> Difference:
    """Two settings, each trained with the same N seeds, each run answering the same M problems.

    Both seeds and problems are samples: the result is about other seeds and other problems. The difference d of the
    mean accuracies has an error from each, with N - 1 and M - 1 degrees of freedom:

        e_seeds = sqrt(var(means of the seeds) / N),  e_problems = sqrt(var(means of the problems) / M)

    p is the probability that |e_seeds T1 + e_problems T2| >= |d| (core/behrens_fisher.py); the interval belongs to it.
    d^2 / (e_seeds^2 + e_problems^2) is Clark's min F'; his approximate degrees of freedom are too many for few seeds.

    The number of seeds sets no lower bound on p, but with fewer seeds the difference must be larger. A sign-flip test
    over N seeds, in contrast, cannot go below 2^(1-N): 0.06 with five. p is at least 2^(1-K), as in a sign-flip test
    over the K problems on which the settings differ, even if both errors are 0.
    Source: Clark 1973 for the two errors, Fisher 1935 for their sum.

    Args:
        first: [N, M], 0 or 1; N and M are at least 2.
        second: likewise; row i has the same seed, column j the same problem.
    """
    differences = first.astype(float) - second
    by_seed, by_problem = differences.mean(axis=1), differences.mean(axis=0)
    value = float(differences.mean())
    seeds, problems = (math.sqrt(float(means.var(ddof=1)) / len(means)) for means in (by_seed, by_problem))
    sources = {"errors": (seeds, problems), "freedoms": (len(by_seed) - 1, len(by_problem) - 1)}
    p, half = tail(abs(value), **sources), half_width(**sources)
    bound = min(1.0, 2.0 ** (1 - np.count_nonzero(by_problem)))
    return Difference(value=value, low=max(value - half, -1.0), high=min(value + half, 1.0), p=max(p, bound))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values: reject those up to 0.05, and the chance of any false rejection is at most 5 %.

    With the m values in ascending order, the i-th becomes the largest of (m - j + 1) p_j over j <= i, at most 1.
    Source: Holm 1979.
    """
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=lambda place: p_values[place])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = largest
    return adjusted
