import math

import pytest

from nemo_minordpo.core.intervals import mean_interval, wilson_interval


@pytest.mark.parametrize(
    ("successes", "total", "low", "high"),
    # The four examples of Newcombe 1998, table I, method 3.
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_interval_published_values(successes, total, low, high):
    assert wilson_interval(successes, total) == pytest.approx((low, high), abs=5e-5)
    # Mirrored: successes and failures swapped.
    mirrored = wilson_interval(total - successes, total)
    assert mirrored == pytest.approx((1 - high, 1 - low), abs=5e-5)


def test_wilson_interval_solves_its_equation():
    z = 1.959963984540054
    for end in wilson_interval(7, 31):
        assert abs(7 / 31 - end) == pytest.approx(z * math.sqrt(end * (1 - end) / 31))
    assert wilson_interval(0, 5)[0] == 0.0
    assert wilson_interval(5, 5)[1] == 1.0


def test_interval_for_a_mean():
    """mean 2.5, s = 1.290994, t(3, 97.5 %) = 3.182446: half a width of 2.054260."""
    assert mean_interval([1.0, 2.0, 3.0, 4.0]) == pytest.approx((0.445740, 4.554260), abs=1e-6)


def test_equal_values_have_no_width():
    assert mean_interval([0.25] * 3) == (0.25, 0.25)
