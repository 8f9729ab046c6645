"""Confidence intervals for rates, means and rank correlations."""

import math
from collections.abc import Sequence

from scipy.special import stdtrit

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


def mean_interval(values: Sequence[float]) -> tuple[float, float]:
    """95 % interval for the mean of a normal distribution: mean -+ t s / sqrt(n), with n - 1 degrees of freedom.

    Source: Student 1908.

    Args:
        values: n >= 2 independent values.
    """
    count, mean = len(values), sum(values) / len(values)
    deviation = math.sqrt(sum((value - mean) ** 2 for value in values) / (count - 1))
    half = float(stdtrit(count - 1, 0.975)) * deviation / math.sqrt(count)
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
