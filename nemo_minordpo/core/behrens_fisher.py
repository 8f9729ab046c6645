"""The uncertainty of a number with two sources of error, each estimated from few values: Behrens and Fisher's solution.

The number's distance from its expectation is taken to be distributed as e1 T1 + e2 T2, where e1 and e2 are the two
estimated standard errors, and T1 and T2 are independent and follow Student's t with the degrees of freedom of each.
Tests made with it reject a true hypothesis no more often than they should, even with one degree of freedom and at small
p-values, where the usual approximation (Satterthwaite's) rejects many times too often.
Source: Behrens 1929, Fisher 1935; that it is conservative: Robinson 1976.
"""

from typing import cast

import numpy as np
from scipy.optimize import brentq
from scipy.special import stdtr, stdtrit

# Cells into which one T is divided: narrow near 0, and wide in the tails.
_EDGES = np.sinh(np.linspace(-12, 12, 1201))
_EDGES[[0, -1]] = -np.inf, np.inf
_MIDDLES = np.sinh(np.linspace(-12, 12, 2401)[1::2])
_SMALLEST = 1e-300  # instead of an error of 0


def tail(distance: float, *, errors: tuple[float, float], freedoms: tuple[int, int]) -> float:
    """P(|e1 T1 + e2 T2| >= distance), the two-sided p-value of a number that is `distance` away from the hypothesis.

    Args:
        distance: at least 0.
        errors: e1 and e2, standard errors of the number, at least 0.
        freedoms: degrees of freedom of each, at least 1.
    """
    # cells for the smaller error: as a function of it, the other's tail is smooth
    (small, of_small), (large, of_large) = sorted(zip(errors, freedoms, strict=True))
    of_cells = np.abs(np.diff(stdtr(of_small, -np.abs(_EDGES))))  # by symmetry, exact in both tails
    beyond = stdtr(of_large, (small * _MIDDLES - distance) / max(large, _SMALLEST))
    return min(1.0, 2 * float(of_cells @ beyond))


def half_width(*, errors: tuple[float, float], freedoms: tuple[int, int]) -> float:
    """Half the width of the 95 % interval: the distance whose :func:`tail` is 5 %."""
    # each source stays within its 97.5 % interval with probability 95 % or more
    widest = sum(error * float(stdtrit(freedom, 0.9875)) for error, freedom in zip(errors, freedoms, strict=True))
    if widest == 0:
        return 0.0
    found = brentq(lambda distance: tail(distance, errors=errors, freedoms=freedoms) - 0.05, 0, 1.01 * widest)
    return cast(float, found)  # not the tuple of full_output
