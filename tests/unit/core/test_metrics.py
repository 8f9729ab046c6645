import math

import pytest
import torch

from nemo_minordpo.core.metrics import (
    DECISIVE,
    METRICS,
    PAIR_METRICS,
    QUANTILES,
    ROWS,
    not_finite,
    pair_metrics,
    summary,
)
from tests.losses import options_with, pairs_with


def metrics(chosen, rejected, *, beta=0.1, loss=None):
    n = len(chosen)
    losses = torch.arange(1.0, n + 1) if loss is None else torch.tensor(loss)
    return pair_metrics(pairs_with(torch.tensor(chosen), torch.tensor(rejected)), options_with(beta=beta), losses)


def test_means_worked_by_hand():
    means = summary(metrics([2.0, -1.0, 0.0], [1.0, -3.0, 0.0]))
    assert tuple(means) == METRICS
    assert means["loss"] == 2.0
    assert means["rewards/chosen"] == pytest.approx(1 / 3)
    assert means["rewards/rejected"] == pytest.approx(-2 / 3)
    assert means["rewards/margin"] == 1.0
    assert means["rewards/accuracy"] == pytest.approx((1 + 1 + 0.5) / 3)  # a tie tells nothing
    assert means["logps/chosen"] == -3.0
    assert means["logps/rejected"] == -4.0
    assert means["logps/shared"] == -1.0
    # 2 tokens in each chosen response, 3 in each rejected one
    assert means["deviation/chosen"] == pytest.approx(1 / 3 / 2)
    assert means["deviation/rejected"] == pytest.approx(-2 / 3 / 3)
    assert means["dpo/coefficient"] == pytest.approx(
        0.1 * (1 / (1 + math.exp(0.1)) + 1 / (1 + math.exp(0.2)) + 0.5) / 3, rel=1e-6
    )
    assert means["minordpo/rejected_below_reference"] == pytest.approx(2 / 3)
    assert means["dpop/chosen_below_reference"] == pytest.approx(1 / 3)


def test_a_lost_pair_counts_as_lost():
    assert summary(metrics([-1.0, 2.0, 1.0, 3.0], [1.0, 3.0, 0.0, 3.5]))["rewards/accuracy"] == 0.25


@pytest.mark.parametrize(("log_probs", "accuracy"), [((-3.0, -4.0), 1.0), ((-4.0, -3.0), 0.0), ((-3.0, -3.0), 0.5)])
def test_the_models_own_preference_does_not_depend_on_the_reference(log_probs, accuracy):
    """In all cases, both rewards prefer the rejected response."""
    pairs = pairs_with(torch.tensor([-1.0, -2.0]), torch.tensor([1.0, 0.0]), log_probs=log_probs)
    means = summary(pair_metrics(pairs, options_with(beta=0.1), torch.ones(2)))
    assert (means["logps/accuracy"], means["rewards/accuracy"]) == (accuracy, 0.0)


@pytest.mark.parametrize(
    ("margins", "quantiles"),
    [
        ([5.0], (5.0, 5.0, 5.0)),
        ([3.0, -1.0], (-0.6, 1.0, 2.6)),  # between pairs: on the line between them
        ([*map(float, range(10, -1, -1))], (1.0, 5.0, 9.0)),
    ],
)
def test_quantiles_of_the_margin_worked_by_hand(margins, quantiles):
    means = summary(metrics([margin + 2 for margin in margins], [2.0] * len(margins)))
    assert tuple(means[f"rewards/margin_{name}"] for name in ("p10", "p50", "p90")) == pytest.approx(quantiles)
    of_chosen = tuple(quantile + 2 for quantile in quantiles)
    assert tuple(means[f"rewards/chosen_{name}"] for name in ("p10", "p50", "p90")) == pytest.approx(of_chosen)


@pytest.mark.parametrize(
    ("noise", "rejected", "chosen"), [(0.0, 0.25, 0.0), (0.1, 0.5, 0.25), (0.25, 0.75, 0.25), (9.0, 1.0, 1.0)]
)
def test_pairs_nearer_to_a_kink_than_the_noise_are_undecided(noise, rejected, chosen):
    means = summary(metrics([-0.1, 0.5, -1.0, 2.0], [0.0, -0.1, 0.25, -3.0]), noise=noise + 1e-7 * (noise > 0))
    assert means["minordpo/rejected_undecided"] == rejected
    assert means["dpop/chosen_undecided"] == chosen


def test_the_kink_of_minordpo_is_at_its_floor():
    chosen, rejected = torch.zeros(3), torch.tensor([-2.5, -2.0, 0.0])
    values = pair_metrics(pairs_with(chosen, rejected), options_with(beta=0.1, minordpo_floor=-2.0), torch.zeros(3))
    means = summary(values, noise=0.75, floor=-2.0)
    assert means["minordpo/rejected_below_reference"] == pytest.approx(2 / 3)
    assert means["minordpo/rejected_undecided"] == pytest.approx(2 / 3)
    assert means["dpop/chosen_undecided"] == 1.0  # its kink stays at 0


def test_the_coefficient_is_that_of_the_log_ratios_the_loss_sees():
    sides = torch.tensor([2.0]), torch.tensor([-1.5])
    options = options_with(beta=0.5, preference_average_log_probs=True)
    (found,) = pair_metrics(pairs_with(*sides), options, torch.zeros(1))[ROWS["dpo/coefficient"]].tolist()
    assert found == pytest.approx(0.5 / (1 + math.exp(0.5 * (2.0 / 2 + 1.5 / 3))))


def test_one_pair_that_carries_the_mean_leaves_the_median_alone():
    means = summary(metrics([0.1, 0.1, 0.1, 0.1, 99.6], [0.0] * 5))
    assert means["rewards/margin"] == pytest.approx(20)
    assert means["rewards/margin_p50"] == pytest.approx(0.1)


def test_a_margin_that_is_no_number_shows_in_every_quantile():
    means = summary(metrics([1.0, math.nan, 2.0], [0.0] * 3))
    assert all(math.isnan(means[name]) for name in QUANTILES)


def test_each_pair_has_a_column():
    whole = metrics([2.0, -1.0], [1.0, -3.0])
    first, second = metrics([2.0], [1.0], loss=[1.0]), metrics([-1.0], [-3.0], loss=[2.0])
    assert whole.dtype == torch.float64
    assert whole.shape == (len(PAIR_METRICS), 2)
    assert torch.equal(torch.cat([first, second], dim=1), whole)
    assert metrics([], []).shape == (len(PAIR_METRICS), 0)


def test_no_gradient_is_recorded():
    ratio = torch.ones(1, requires_grad=True)
    assert not pair_metrics(pairs_with(ratio, ratio), options_with(beta=0.1), 2 * ratio).requires_grad


def test_metrics_and_pairs_that_are_not_finite():
    values = metrics([1.0, math.nan, 2.0, 3.0], [0.0, 0.0, 0.0, -math.inf])
    assert not_finite(values) == (["rewards/chosen", "rewards/rejected"], [1, 3])
    assert not_finite(metrics([1.0, -1e30], [0.0, 1e30])) == ([], [])
    assert not_finite(metrics([1.0, 2.0], [0.0, 0.0], loss=[math.inf, 1.0])) == (["loss"], [0])


@pytest.mark.parametrize("name", DECISIVE)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_every_mean_shows_a_pair_that_is_not_finite(name, value):
    values = metrics([0.0] * 7, [0.0] * 7)
    assert math.isfinite(summary(values)[name])
    values[ROWS[name], 4] = value
    assert not math.isfinite(summary(values)[name])


def test_where_the_decisive_metrics_are_finite_all_are():
    values = metrics([0.0, -1e30, 1e30, 5.0], [1e30, 1e30, -1e30, 5.0])
    assert values.isfinite().all()
    assert all(map(math.isfinite, summary(values).values()))


def test_no_pair_is_an_error():
    with pytest.raises(ValueError, match="no pairs: there is nothing to average"):
        summary(metrics([], []))
