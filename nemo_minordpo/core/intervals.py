"""Confidence intervals for rates and rank correlations."""

import math
from collections.abc import Sequence

from scipy.special import stdtrit

from nemo_minordpo.core.behrens_fisher import half_width

Z_95 = 1.959963984540054  # the standard normal's 97.5 % point


def wilson_interval(successes: float, total: int) -> tuple[float, float]:
    """95 % score interval for a rate: (p + z^2/2n -+ z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n).

    Unlike p -+ z sqrt(p(1-p)/n), it stays within 0 and 1 and does not collapse at p = 0 and p = 1.
    Source: Wilson 1927.

    Args:
        successes: 0 to `total`; may be fractional, e.g. a mean over seeds.
        total: n, at least 1.
    """
    rate, z2n = successes / total, Z_95**2 / total
    centre = rate + z2n / 2
    half = Z_95 * math.sqrt(rate * (1 - rate) / total + z2n / (4 * total))
    # Exactly 0 and 1 at the ends; rounding would leave an error of 1e-17.
    low = 0.0 if successes == 0 else (centre - half) / (1 + z2n)
    high = 1.0 if successes == total else (centre + half) / (1 + z2n)
    return low, high


def interval_over_seeds(rates: Sequence[float], total: int) -> tuple[float, float]:
    """95 % interval for a rate over other seeds and other questions: two errors, added as in core/behrens_fisher.py.

    The error from the seeds is s / sqrt(N), with N - 1 degrees of freedom. That from the questions, with n - 1, is
    sqrt(q(1-q) / (n + 4)), where q = (n mean + 2) / (n + 4). Source of the latter: Agresti and Coull 1998.

    Args:
        rates: of the N >= 2 seeds, on the same questions.
        total: n, at least 2.
    """
    count, mean = len(rates), sum(rates) / len(rates)
    of_seeds = sum((rate - mean) ** 2 for rate in rates) / (count - 1) / count
    adjusted = (total * mean + 2) / (total + 4)
    of_questions = adjusted * (1 - adjusted) / (total + 4)
    errors = math.sqrt(of_seeds), math.sqrt(of_questions)
    half = half_width(errors=errors, freedoms=(count - 1, total - 1))
    return max(mean - half, 0.0), min(mean + half, 1.0)


def mean_interval(values: Sequence[float]) -> tuple[float, float]:
    """95 % interval for an expectation: mean -+ t s / sqrt(n), with Student's t of n - 1 degrees of freedom.

    Args:
        values: n >= 2 independent draws.
    """
    count, mean = len(values), sum(values) / len(values)
    error = math.sqrt(sum((value - mean) ** 2 for value in values) / (count - 1) / count)
    half = float(stdtrit(count - 1, 0.975)) * error
    return mean - half, mean + half


def rank_correlation_interval(correlation: float, count: int) -> tuple[float, float]:
    """95 % interval for Spearman's coefficient: tanh(artanh(r) -+ z sqrt((1 + r^2/2) / (n - 3))).

    Source: Bonett and Wright 2000.

    Args:
        correlation: r, -1 to 1.
        count: n, at least 4.
    """
    if abs(correlation) >= 1 - 1e-12:
        return correlation, correlation
    half = Z_95 * math.sqrt((1 + correlation**2 / 2) / (count - 3))
    centre = math.atanh(correlation)
    return math.tanh(centre - half), math.tanh(centre + half)
