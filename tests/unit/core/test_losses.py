"""Values worked by hand, gradients against finite differences in float64, both sides of each kink and at it."""

import dataclasses
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nemo_minordpo import config
from nemo_minordpo.core.losses import (
    LOSSES,
    Options,
    coefficient,
    dpo,
    dpop,
    minordpo,
    needs_reference,
    objective,
    rpo_sq,
    sft,
)
from tests.losses import options_with, pairs_with

SIGMOIDS = ("dpo", "dpop", "minordpo", "bdpo", "dpo_shift")  # -log sigmoid(beta * margin), of log-ratios


def softplus(x: float) -> float:
    """-log sigmoid(-x)."""
    return math.log1p(math.exp(x))


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def call(name, chosen, rejected, *, beta=0.5, reward_margin=0.0, **options):
    """A loss at some log-ratios; the log-probabilities are the log-ratios, less 3 and 4."""
    pairs = pairs_with(chosen, rejected, reward_margin=reward_margin)
    pairs = dataclasses.replace(pairs, chosen_log_probs=chosen - 3, rejected_log_probs=rejected - 4)
    return LOSSES[name](pairs, options_with(beta=beta, **options))


@pytest.mark.parametrize(
    ("name", "chosen", "rejected", "inside"),
    [
        ("dpo", 2.0, 0.5, 1.5),
        ("dpo", -3.0, -5.0, 2.0),
        ("minordpo", 2.0, 0.5, 1.5),  # rejected above the reference: as DPO
        ("minordpo", 2.0, -1.0, 2.0),  # below: the term is off
        ("minordpo", -2.0, -1.0, -2.0),  # chosen below: no floor
        ("minordpo", 2.0, 0.0, 2.0),
        ("dpop", 2.0, 0.5, 1.5),  # chosen above the reference: as DPO
        ("dpop", -0.1, 0.5, -0.1 - 0.5 - 50 * 0.1),  # below: inside the sigmoid, times beta
        ("dpop", 0.0, 0.5, -0.5),
        ("bdpo", 2.0, 0.5, 2.0 - math.log((math.exp(0.5) + 1) / 2)),
        ("bdpo", -2.0, -40.0, -2.0 - math.log(0.5)),  # the rejected response counts no lower than log(1 - lambda)
        ("dpo_shift", 2.0, 0.5, 2.0 - 0.75 * 0.5),
        ("dpo_shift", 2.0, -1.0, 2.0 + 0.75),
        # 2 and 3 tokens; log-probabilities -1 and -3.5; gamma 0.5 is divided by beta 0.5
        ("simpo", 2.0, 0.5, -1.0 / 2 + 3.5 / 3 - 1.0),
    ],
)
def test_value_worked_by_hand(name, chosen, rejected, inside):
    loss = call(name, torch.tensor([chosen]), torch.tensor([rejected]), beta=0.5)
    torch.testing.assert_close(loss, torch.tensor([softplus(-0.5 * inside)]))


@pytest.mark.parametrize(("chosen", "rejected"), [(2.0, 0.5), (-1.5, -0.75)])
def test_every_loss_is_worked_by_hand(chosen, rejected):
    """Slow and obvious, from probabilities: beta 0.5, label smoothing 0.1, a reward margin of 0.125, twice."""
    difference = chosen - rejected
    a, b = sigmoid(0.25), sigmoid(0.5 * difference)

    def logistic(margin):
        right = sigmoid(0.5 * margin)
        return -0.9 * math.log(right) - 0.1 * math.log(1 - right)

    values = {
        "dpo": logistic(difference),
        "dpop": logistic(difference - 5 * max(0, -chosen)),
        "minordpo": logistic(chosen - max(0.25, rejected)),
        "ipo": (difference - 1.0) ** 2,  # 1 / (2 beta) = 1
        "rpo_sq": (0.5 * difference - 0.25) ** 2,
        "rpo_bwd_kl": a * math.log(a / b) + (1 - a) * math.log((1 - a) / (1 - b)),
        "rpo_fwd_kl": b * math.log(b / a) + (1 - b) * math.log((1 - b) / (1 - a)),
        "robust": (-0.9 * math.log(b) + 0.1 * math.log(1 - b)) / 0.8,
        "hinge": max(0, 1 - 0.5 * difference),
        "apo_zero": 1 - sigmoid(0.5 * chosen) + sigmoid(0.5 * rejected),
        "apo_down": sigmoid(0.5 * chosen) + 1 - b,
        "nca_pair": -math.log(sigmoid(0.5 * chosen))
        - 0.5 * math.log(1 - sigmoid(0.5 * chosen))
        - 0.5 * math.log(1 - sigmoid(0.5 * rejected)),
        "bdpo": logistic(chosen - math.log(0.3 * math.exp(rejected) + 0.7)),
        "dpo_shift": logistic(chosen - 0.6 * rejected),
        "simpo": logistic((chosen - 3) / 2 - (rejected - 4) / 3 - 0.4 / 0.5),
        "sft": 3 - chosen,
    }
    assert values.keys() == LOSSES.keys()
    options = {
        "label_smoothing": 0.1, "dpop_lambda": 5.0, "minordpo_floor": 0.25, "gt_reward_scale": 2.0, "bdpo_lambda": 0.3,
        "dpo_shift_lambda": 0.6, "simpo_gamma": 0.4,
    }  # fmt: skip
    for name, value in values.items():
        sides = torch.tensor([chosen], dtype=torch.float64), torch.tensor([rejected], dtype=torch.float64)
        loss = call(name, *sides, beta=0.5, reward_margin=0.125, **options)
        assert loss.item() == pytest.approx(value, rel=1e-12), name


@pytest.mark.parametrize("name", SIGMOIDS)
@pytest.mark.parametrize(("chosen", "rejected"), [(2.0, 0.5), (-1.5, -0.75), (0.5, -3.0)])
def test_the_margins_that_the_report_names_are_those_of_the_losses(name, chosen, rejected):
    values = {"chosen": chosen, "rejected": rejected, "max": max, "log": math.log, "exp": math.exp}
    margin = eval(config.MARGINS[name], values | dataclasses.asdict(options_with(beta=0.5)))
    found = call(name, torch.tensor([chosen], dtype=torch.float64), torch.tensor([rejected], dtype=torch.float64))
    assert found.item() == pytest.approx(softplus(-0.5 * margin), rel=1e-12)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("chosen", [-1.7, 0.9])
@pytest.mark.parametrize("rejected", [-0.8, 1.3])
def test_gradient_against_finite_differences(name, chosen, rejected):
    """float64, on both sides of both kinks."""
    values = [torch.tensor([value], dtype=torch.float64, requires_grad=True) for value in (chosen, rejected)]
    options = {"beta": 0.1, "dpop_lambda": 5.0, "minordpo_floor": -0.5, "label_smoothing": 0.2, "reward_margin": 0.4}
    call(name, *values, **options).sum().backward()
    step = 1e-6
    for index, value in enumerate(values):
        ends = []
        for shift in (step, -step):
            moved = [item.detach().clone() for item in values]
            moved[index] += shift
            ends.append(call(name, *moved, **options).item())
        numeric = (ends[0] - ends[1]) / (2 * step)
        gradient = 0.0 if value.grad is None else value.grad.item()
        assert gradient == pytest.approx(numeric, rel=1e-7, abs=1e-9)


@pytest.mark.parametrize(
    ("rejected", "learns"), [(1.0, True), (1e-6, True), (0.0, False), (-1e-6, False), (-1.0, False)]
)
def test_minordpo_pushes_the_rejected_side_only_above_the_reference(rejected, learns):
    chosen = torch.tensor([2.0], requires_grad=True)
    rejected = torch.tensor([rejected], requires_grad=True)
    minordpo(pairs_with(chosen, rejected), options_with(beta=0.5)).sum().backward()
    assert (rejected.grad.item() > 0) is learns
    assert chosen.grad.item() < 0  # control: the chosen side always learns


@pytest.mark.parametrize("floor", [-2.0, 1.5])
def test_minordpo_pushes_down_to_its_floor(floor):
    above, at, below = (torch.tensor([floor + by], dtype=torch.float64, requires_grad=True) for by in (1e-6, 0, -1e-6))
    for rejected in (above, at, below):
        call("minordpo", torch.zeros(1, dtype=torch.float64), rejected, minordpo_floor=floor).sum().backward()
    assert above.grad.item() > 0
    assert at.grad.item() == below.grad.item() == 0


def test_label_smoothing_stops_the_margin_where_the_sigmoid_is_sure_enough():
    """At beta * margin = log((1 - e) / e) the gradient is 0; beyond, it pulls the margin back."""
    target = math.log(0.9 / 0.1) / 0.5
    for margin, sign in ((target - 1, -1), (target, 0), (target + 1, 1)):
        chosen = torch.tensor([margin], dtype=torch.float64, requires_grad=True)
        call("dpo", chosen, torch.zeros(1, dtype=torch.float64), label_smoothing=0.1).sum().backward()
        assert chosen.grad.item() * sign >= 0
        assert abs(chosen.grad.item()) < 1e-12 if sign == 0 else abs(chosen.grad.item()) > 1e-3


def test_robust_is_dpo_on_average_over_pairs_in_the_wrong_order():
    chosen, rejected = torch.tensor([1.25], dtype=torch.float64), torch.tensor([-0.5], dtype=torch.float64)
    right, wrong = (
        call("robust", chosen, rejected, label_smoothing=0.2),
        call("robust", rejected, chosen, label_smoothing=0.2),
    )
    torch.testing.assert_close(0.8 * right + 0.2 * wrong, call("dpo", chosen, rejected))


@pytest.mark.parametrize(("chosen", "penalised"), [(1.0, False), (0.0, False), (-1e-6, True), (-1.0, True)])
def test_dpop_penalises_only_a_chosen_side_below_the_reference(chosen, penalised):
    chosen = torch.tensor([chosen], dtype=torch.float64, requires_grad=True)
    rejected = torch.tensor([0.3], dtype=torch.float64)
    dpop(pairs_with(chosen, rejected), options_with(beta=0.02, dpop_lambda=50.0)).sum().backward()
    inside = chosen.item() - 0.3 - 50 * max(0.0, -chosen.item())
    weight = 0.02 / (1 + math.exp(0.02 * inside))
    assert chosen.grad.item() == pytest.approx(-weight * (51 if penalised else 1), rel=1e-12)


@given(chosen=st.floats(-30, 30), rejected=st.floats(-30, 30), beta=st.sampled_from([0.02, 0.04, 0.06, 0.08, 0.1, 0.2]))
def test_papers_coefficient_is_dpos_gradient(chosen, rejected, beta):
    """Eq. 4: the gradient is -f(beta, margin) for the chosen side, +f for the rejected one."""
    sides = [torch.tensor([value], dtype=torch.float64, requires_grad=True) for value in (chosen, rejected)]
    dpo(pairs_with(*sides), options_with(beta=beta)).sum().backward()
    f = coefficient(torch.tensor([chosen - rejected], dtype=torch.float64), beta=beta).item()
    by_hand = beta / (1 + math.exp(beta * (chosen - rejected)))
    assert f == pytest.approx(by_hand, rel=1e-12)
    assert sides[0].grad.item() == pytest.approx(-f, rel=1e-9)
    assert sides[1].grad.item() == pytest.approx(f, rel=1e-9)


@given(chosen=st.floats(-50, 50), rejected=st.floats(-50, 50))
def test_minordpo_is_dpo_with_a_rejected_side_of_at_least_zero(chosen, rejected):
    ours = call("minordpo", torch.tensor([chosen]), torch.tensor([rejected]))
    as_dpo = call("dpo", torch.tensor([chosen]), torch.tensor([max(rejected, 0.0)]))
    torch.testing.assert_close(ours, as_dpo)


@pytest.mark.parametrize("name", LOSSES)
def test_extreme_log_ratios_stay_finite(name):
    extremes = torch.tensor([-5000.0, 5000.0, 0.0, 5000.0], requires_grad=True)
    loss = call(name, extremes, extremes.detach().flip(0), beta=0.2, reward_margin=1.0)
    loss.sum().backward()
    assert loss.isfinite().all()
    assert extremes.grad.isfinite().all()


def test_one_value_a_pair():
    chosen, rejected = torch.randn(5), torch.randn(5)
    for name in LOSSES:
        together = call(name, chosen, rejected, reward_margin=0.3)
        apart = torch.cat([call(name, chosen[i : i + 1], rejected[i : i + 1], reward_margin=0.3) for i in range(5)])
        torch.testing.assert_close(together, apart)


def test_the_configuration_knows_the_names_and_which_options_each_loss_reads():
    assert tuple(LOSSES) == config.LOSS_NAMES
    chosen, rejected = torch.tensor([-1.0]), torch.tensor([0.5])
    changed = {
        "ref_policy_kl_penalty": {"beta": 0.3}, "dpop_lambda": {"dpop_lambda": 7.0},
        "minordpo_floor": {"minordpo_floor": 1.0}, "label_smoothing": {"label_smoothing": 0.2},
        "bdpo_lambda": {"bdpo_lambda": 0.2}, "dpo_shift_lambda": {"dpo_shift_lambda": 0.2},
        "simpo_gamma": {"simpo_gamma": 2.0}, "gt_reward_scale": {"gt_reward_scale": 3.0},
        "sft_average_log_probs": {"sft_average_log_probs": True},
        "preference_average_log_probs": {"preference_average_log_probs": True, "sft_average_log_probs": False},
    }  # fmt: skip
    options = {item.name for item in dataclasses.fields(Options)}
    assert {name for values in changed.values() for name in values} == options
    for name, loss in LOSSES.items():
        pairs = pairs_with(chosen, rejected, reward_margin=0.25)
        before = objective({loss: 1.0}, pairs, options_with(beta=0.5))
        for key, options in changed.items():
            after = objective({loss: 1.0}, pairs, options_with(**{"beta": 0.5} | options))
            assert (not torch.equal(before, after)) is config.reads([name], f"model.dpo.{key}"), (name, key)


def test_the_objective_is_the_weighted_sum_of_its_losses():
    pairs = pairs_with(torch.tensor([2.0]), torch.tensor([0.5]), log_probs=(-3.0, -4.0), reward_margin=3.0)
    by_hand = 2 * softplus(-0.75) + 0.25 * 3 + 0.5 * (0.75 - 3.0) ** 2
    found = objective({dpo: 2.0, sft: 0.25, rpo_sq: 0.5}, pairs, options_with(beta=0.5))
    torch.testing.assert_close(found, torch.tensor([by_hand]))


def test_averages_are_over_the_tokens_of_each_response():
    pairs = pairs_with(torch.tensor([2.0]), torch.tensor([0.5]), log_probs=(-3.0, -4.0), num_tokens=(4, 2))
    options = {"beta": 0.5, "preference_average_log_probs": True}
    found = objective({dpo: 1.0, sft: 1.0}, pairs, options_with(**options, sft_average_log_probs=False))
    torch.testing.assert_close(found, torch.tensor([softplus(-0.5 * (2.0 / 4 - 0.5 / 2)) + 3]))
    # left out, the average of sft follows that of the preference losses
    found = objective({dpo: 1.0, sft: 1.0}, pairs, options_with(**options))
    torch.testing.assert_close(found, torch.tensor([softplus(-0.5 * (2.0 / 4 - 0.5 / 2)) + 3 / 4]))


def test_a_loss_says_that_it_needs_no_reference():
    def own(pairs, options):
        return pairs.chosen_log_probs

    assert needs_reference(own)
    own.needs_reference = False
    assert not needs_reference(own)
    assert [name for name, loss in LOSSES.items() if not needs_reference(loss)] == ["simpo", "sft"]


@pytest.mark.parametrize("name", ["simpo", "sft"])
def test_a_loss_without_a_reference_reads_no_log_ratio(name):
    pairs = pairs_with(torch.tensor([2.0]), torch.tensor([0.5]))
    others = dataclasses.replace(pairs, chosen_log_ratio=torch.tensor([9.0]), rejected_log_ratio=torch.tensor([-9.0]))
    assert torch.equal(*(LOSSES[name](one, options_with(beta=0.5)) for one in (pairs, others)))
