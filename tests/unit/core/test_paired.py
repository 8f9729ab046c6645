"""Paired tests: published and hand-worked values, and how often each test rejects a true hypothesis."""

import math

import numpy as np
import pytest
from scipy.stats import binomtest, ttest_1samp

from nemo_minordpo.core.behrens_fisher import half_width, tail
from nemo_minordpo.core.intervals import interval_over_seeds, wilson_interval
from nemo_minordpo.core.paired import holm, mcnemar, over_seeds_and_problems


@pytest.mark.parametrize(
    ("only_first", "only_second", "p"),
    [
        # Altman et al. 2000, Statistics with Confidence, table 6.2: 5 and 0 of 41 pairs; by hand 2 / 2^5
        (5, 0, 0.0625),
        # Fay 2010, exact McNemar test: 9 and 2 discordant pairs; by hand 2 (1 + 11 + 55) / 2^11 = 134 / 2048
        (9, 2, 134 / 2048),
        (2, 9, 134 / 2048),
        (3, 3, 1.0),
        (0, 0, 1.0),
        (1, 0, 1.0),
    ],
)
def test_mcnemar_published_and_hand_worked_values(only_first, only_second, p):
    assert mcnemar(only_first=only_first, only_second=only_second, total=41).p == pytest.approx(p, rel=1e-12)


def test_mcnemar_of_the_approval_ratings():
    """Agresti 1990, page 350: 1600 voters, 150 changed to disapproval and 86 to approval."""
    found = mcnemar(only_first=86, only_second=150, total=1600)
    assert found.p == pytest.approx(binomtest(86, 236).pvalue)
    assert found.p == pytest.approx(3.7e-5, rel=0.02)  # the chi-squared test: 3.1e-5
    assert found.value == -0.04
    # (86 - 150) / 1602 -+ 1.96 sqrt(237 - 64^2 / 1602) / 1602
    half = 1.959963984540054 * math.sqrt(237 - 64**2 / 1602) / 1602
    assert (found.low, found.high) == pytest.approx((-64 / 1602 - half, -64 / 1602 + half))


def test_the_interval_of_equal_models_does_not_collapse():
    found = mcnemar(only_first=0, only_second=0, total=100)
    assert (found.value, found.low) == (0.0, -found.high)
    assert found.high == pytest.approx(1.96 / 102, rel=1e-3)


def test_holm_worked_by_hand():
    # in order 0.01, 0.02, 0.03, 0.04 times 4, 3, 2, 1: 0.04, 0.06, 0.06, and 0.04 is raised to 0.06
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    # Bonferroni would give 0.03, 0.06 and 1: Holm rejects the second too
    assert holm([0.01, 0.02, 0.9]) == pytest.approx([0.03, 0.04, 0.9])
    assert holm([0.7, 0.6]) == [1.0, 1.0]
    assert holm([]) == []


@pytest.mark.parametrize(
    ("freedom", "angle", "distance"),
    # Fisher and Yates, Statistical Tables, table VI (5 %): distance over sqrt(e1^2 + e2^2), with tan(angle) = e1 / e2
    [(6, 0, 2.447), (6, 15, 2.440), (6, 30, 2.435), (8, 15, 2.300), (8, 30, 2.294), (8, 45, 2.292), (12, 45, 2.167)],
)
def test_behrens_fisher_published_values(freedom, angle, distance):
    errors = math.sin(math.radians(angle)), math.cos(math.radians(angle))
    assert half_width(errors=errors, freedoms=(freedom, freedom)) == pytest.approx(distance, abs=6e-4)


def test_behrens_fisher_with_a_single_error_is_students():
    for errors, freedoms in (((0.0, 2.0), (1, 4)), ((2.0, 0.0), (4, 499))):
        assert tail(2 * 2.776445, errors=errors, freedoms=freedoms) == pytest.approx(0.05, rel=1e-4)
    assert tail(2 * 12.7062, errors=(2.0, 1e-9), freedoms=(1, 499)) == pytest.approx(0.05, rel=1e-4)
    assert (tail(0.1, errors=(0, 0), freedoms=(1, 9)), half_width(errors=(0, 0), freedoms=(1, 9))) == (0.0, 0.0)
    assert tail(0.0, errors=(0, 0), freedoms=(1, 9)) == pytest.approx(1)


def test_two_seeds_worked_by_hand():
    """Four problems: differences 1 0 0 1 and 1 0 0 0, so 1/2 and 1/4 by seed, 1 0 0 1/2 by problem."""
    found = over_seeds_and_problems(np.array([[1, 1, 0, 1], [1, 0, 0, 0]]), np.array([[0, 1, 0, 0], [0, 0, 0, 0]]))
    assert found.value == 3 / 8
    # variances of the means: (1/8)^2 * 2 / 1 / 2 = 1/64, and (sum of squares 5/4 - 4 (3/8)^2) / 3 / 4 = 11/192
    errors = {"errors": (math.sqrt(1 / 64), math.sqrt(11 / 192)), "freedoms": (1, 3)}
    assert found.high - found.value == pytest.approx(min(half_width(**errors), 5 / 8))
    assert found.p == pytest.approx(max(tail(3 / 8, **errors), 0.5))  # two problems differ: not below 1/2


def test_seeds_that_agree_are_no_reason_to_claim_more_than_the_problems_allow():
    better = over_seeds_and_problems(np.ones((5, 4), bool), np.zeros((5, 4), bool))
    assert (better.value, better.p) == (1.0, 0.125)
    same = over_seeds_and_problems(np.ones((5, 4), bool), np.ones((5, 4), bool))
    assert (same.value, same.p) == (0.0, 1.0)


def test_it_is_more_careful_than_either_students_test_alone():
    chance = np.random.default_rng(0)
    first, second = chance.random((5, 200)) < 0.65, chance.random((5, 200)) < 0.4
    differences = first.astype(float) - second
    single = [ttest_1samp(differences.mean(axis=axis), 0).pvalue for axis in (0, 1)]
    assert max(single) < over_seeds_and_problems(first, second).p < 0.05


def _equally_good(chance, *, seeds, problems):
    """Two settings of equal expected accuracy; each seed of each has a skill of its own."""
    ease, skill = chance.normal(0.8, 1.5, problems), chance.normal(0, 0.3, (2, seeds, 1))
    return chance.random((2, seeds, problems)) < 1 / (1 + np.exp(-(ease + skill)))


@pytest.mark.parametrize("seeds", [2, 5])
def test_equally_good_settings_are_rarely_found_different(seeds):
    """At most 5 % of the time, although seeds differ. Control: McNemar's test on all answers does so far more often."""
    chance, times = np.random.default_rng(1), 300
    ours = pooled = 0
    for _ in range(times):
        first, second = _equally_good(chance, seeds=seeds, problems=300)
        ours += over_seeds_and_problems(first, second).p <= 0.05
        counts = {"only_first": int((first & ~second).sum()), "only_second": int((second & ~first).sum())}
        pooled += mcnemar(**counts, total=first.size).p <= 0.05
    assert ours / times < 0.05
    assert pooled / times > 0.2


def test_the_interval_over_seeds_covers_seeds_and_questions():
    alike = interval_over_seeds([0.5, 0.5], 400)
    # without differences between seeds: the interval of the questions, p -+ t sqrt(p(1-p)/404)
    assert alike == pytest.approx((0.5 - 1.9659 * 0.5 / math.sqrt(404), 0.5 + 1.9659 * 0.5 / math.sqrt(404)), abs=1e-5)
    assert alike == pytest.approx(wilson_interval(200, 400), abs=1e-3)
    apart = interval_over_seeds([0.4, 0.6], 400)
    assert apart == (0.0, 1.0)  # two seeds: 0.5 -+ 12.7 * 0.1 and more
    five = interval_over_seeds([0.44, 0.47, 0.5, 0.53, 0.56], 400)
    assert 0.1 < five[1] - 0.5 - (alike[1] - 0.5) + 0.08 < 0.2
    assert interval_over_seeds([0.0, 0.0], 100)[1] > 0.02
