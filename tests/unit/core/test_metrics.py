import math

import pytest
import torch

from nemo_minordpo.core.metrics import PAIR_METRICS, means_of, pair_metric_sums


def sums(chosen, rejected, *, beta=0.1, loss=None):
    n = len(chosen)
    return pair_metric_sums(
        loss=torch.arange(1.0, n + 1) if loss is None else torch.tensor(loss),
        chosen_log_ratio=torch.tensor(chosen),
        rejected_log_ratio=torch.tensor(rejected),
        chosen_log_probs=torch.full((n,), -3.0),
        rejected_log_probs=torch.full((n,), -4.0),
        beta=beta,
    )


def test_means_worked_by_hand():
    means = means_of(sums([2.0, -1.0, 0.0], [1.0, -3.0, 0.0]))
    assert tuple(means) == PAIR_METRICS
    assert means["loss"] == 2.0
    assert means["rewards/chosen"] == pytest.approx(1 / 3)
    assert means["rewards/rejected"] == pytest.approx(-2 / 3)
    assert means["rewards/margin"] == 1.0
    assert means["rewards/accuracy"] == pytest.approx((1 + 1 + 0.5) / 3)  # a tie tells nothing
    assert means["logps/chosen"] == -3.0
    assert means["logps/rejected"] == -4.0
    assert means["dpo/coefficient"] == pytest.approx(
        0.1 * (1 / (1 + math.exp(0.1)) + 1 / (1 + math.exp(0.2)) + 0.5) / 3, rel=1e-6
    )
    assert means["minordpo/rejected_below_reference"] == pytest.approx(2 / 3)
    assert means["dpop/chosen_below_reference"] == pytest.approx(1 / 3)


def test_a_lost_pair_counts_as_lost():
    assert means_of(sums([-1.0, 2.0, 1.0, 3.0], [1.0, 3.0, 0.0, 3.5]))["rewards/accuracy"] == 0.25


def test_sums_add_up_over_micro_batches():
    whole = sums([2.0, -1.0], [1.0, -3.0])
    first, second = sums([2.0], [1.0], loss=[1.0]), sums([-1.0], [-3.0], loss=[2.0])
    assert whole.dtype == torch.float64
    assert whole.shape == (len(PAIR_METRICS) + 1,)
    torch.testing.assert_close(first + second, whole)


def test_a_row_without_pairs_adds_nothing():
    assert sums([], []).tolist() == [0.0] * (len(PAIR_METRICS) + 1)


def test_no_gradient_is_kept():
    names = ("loss", "chosen_log_ratio", "rejected_log_ratio", "chosen_log_probs", "rejected_log_probs")
    values = pair_metric_sums(**{name: torch.ones(1, requires_grad=True) for name in names}, beta=0.1)
    assert not values.requires_grad


def test_no_pair_is_an_error():
    with pytest.raises(ValueError, match="no pair was counted"):
        means_of(sums([], []))
