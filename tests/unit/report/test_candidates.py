"""Rank correlations of metrics with the score, and when they are unknown."""

import random

import pytest
from scipy.stats import spearmanr

from nemo_minordpo.core.intervals import rank_correlation_interval
from nemo_minordpo.report.axes import arrange
from nemo_minordpo.report.candidates import FEWEST_RUNS, candidate_metrics, relations, sentence, spearman
from tests.unit.report.test_summary import run


def runs_with(metric, *, loss="dpo", count=12, score=lambda n: 20 + n):
    """Runs whose metric ends at `metric(n)` and whose score rises with n."""
    made = [run(loss, score(n), beta=0.01 * (n + 1)) for n in range(count)]
    for n, one in enumerate(made):
        one.lines["train"][0].values.update({"watched": metric(n), "step_s": float(n)})
    return made


def test_spearman_is_scipys():
    chance = random.Random(1)
    for count in (3, 10, 40):
        left, right = ([float(chance.randrange(count // 2 + 2)) for _ in range(count)] for _ in range(2))
        assert spearman(left, right) == pytest.approx(spearmanr(left, right).statistic)
    assert spearman([1.0, 1.0, 1.0], [1.0, 2.0, 3.0]) is None


def test_the_interval_of_a_rank_correlation():
    low, high = rank_correlation_interval(0.7, FEWEST_RUNS - 1)
    assert low < 0 < high
    assert rank_correlation_interval(0.7, FEWEST_RUNS)[0] > 0
    # Bonett and Wright by hand, r = 0.5, n = 28: artanh 0.5493 -+ 1.96 * sqrt(1.125 / 25) = 0.1335, 0.9651
    assert rank_correlation_interval(0.5, 28) == pytest.approx((0.1327, 0.7467), abs=2e-4)
    assert rank_correlation_interval(-1.0, 28) == (-1.0, -1.0)


def test_a_metric_that_predicts_the_score_is_named():
    grid = arrange(runs_with(lambda n: -float(n)), None)
    found = relations(grid)
    by_metric = {one.metric: one for one in found}
    assert by_metric["watched"].correlation == pytest.approx(-1)
    assert by_metric["rewards/chosen"].correlation is None  # the same in all runs
    assert sentence(grid, found).startswith(
        "Of 1 training metrics, watched correlates best with the score: rank correlation -1.00"
    )


def test_a_metric_that_does_not_predict_the_score_is_not_named():
    chance = random.Random(3)
    places = chance.sample(range(40), 40)
    found = relations(arrange(runs_with(lambda n: float(places[n]), count=40), None))
    (watched,) = [one for one in found if one.metric == "watched"]
    assert watched.low < 0 < watched.high


def test_too_few_runs_are_reported():
    grid = arrange(runs_with(float, count=FEWEST_RUNS - 1), None)
    found = relations(grid)
    assert all(one.correlation is None for one in found)
    assert (
        "is unknown whether a training metric predicts the score: too few runs have a score (9; 10 are needed)"
        in sentence(grid, found)
    )
    grid = arrange(runs_with(float, count=FEWEST_RUNS), None)
    assert "unknown" not in sentence(grid, relations(grid))


def test_runs_whose_metric_is_not_a_number_do_not_count():
    made = runs_with(lambda n: float("nan") if n == 0 else float(n))
    (watched,) = [one for one in relations(arrange(made, None)) if one.metric == "watched"]
    assert watched.count == 11


def test_correlations_are_also_computed_within_each_loss():
    """Within each loss the metric falls as the score rises; over both losses together it rises."""
    low = runs_with(lambda n: -float(n), score=lambda n: 10 + n)
    high = runs_with(lambda n: 100 - float(n), loss="ipo", score=lambda n: 60 + n)
    grid = arrange(low + high, None)
    found = {one.runs: one for one in relations(grid) if one.metric == "watched"}
    assert found["all"].correlation > 0.4
    assert (found["dpo"].correlation, found["ipo"].correlation) == (pytest.approx(-1), pytest.approx(-1))
    assert "within each loss: dpo -1.00 (n = 12); ipo -1.00 (n = 12)" in sentence(grid, list(found.values()))


def test_metrics_of_the_machine_are_not_candidates():
    assert "step_s" not in candidate_metrics(arrange(runs_with(float), None))
