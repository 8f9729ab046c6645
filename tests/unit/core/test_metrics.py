import math

import pytest
import torch

from nemo_minordpo.core.metrics import PAIR_METRICS, means_of, pair_metric_sums


def sums(chosen, rejected, valid, beta=0.1):
    n = len(chosen)
    return pair_metric_sums(
        loss=torch.arange(1.0, n + 1),
        chosen_log_ratio=torch.tensor(chosen),
        rejected_log_ratio=torch.tensor(rejected),
        chosen_log_probs=torch.full((n,), -3.0),
        rejected_log_probs=torch.full((n,), -4.0),
        valid=torch.tensor(valid),
        beta=beta,
    )


def test_means_worked_by_hand():
    means = means_of(sums([2.0, -1.0, 0.0], [1.0, -3.0, 0.0], [True, True, True]))
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


def test_filler_counts_nowhere_whatever_its_values_are():
    with_filler = sums([2.0, math.nan, math.inf], [1.0, 7.0, -math.inf], [True, False, False])
    torch.testing.assert_close(with_filler, sums([2.0], [1.0], [True]))


def test_sums_add_up_over_micro_batches():
    whole = sums([2.0, -1.0], [1.0, -3.0], [True, True])
    first, second = sums([2.0, 0.0], [1.0, 0.0], [True, False]), sums([0.0, -1.0], [0.0, -3.0], [False, True])
    torch.testing.assert_close(first + second, whole)


def test_no_pair_is_an_error():
    with pytest.raises(ValueError, match="no valid pair"):
        means_of(sums([2.0], [1.0], [False]))
