"""Values worked by hand, gradients against finite differences in float64, both sides of each kink and at it."""

import dataclasses
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nemo_minordpo import config
from nemo_minordpo.core.losses import LOSSES, Options, coefficient, dpo, dpop, minordpo, needs_reference, objective
from tests.losses import options_with, pairs_with


def softplus(x: float) -> float:
    """-log sigmoid(-x)."""
    return math.log1p(math.exp(x))


def call(name, chosen, rejected, *, beta=0.5, reward_margin=0.0, **options):
    return LOSSES[name](pairs_with(chosen, rejected, reward_margin=reward_margin), options_with(beta=beta, **options))


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
    ],
)
def test_value_worked_by_hand(name, chosen, rejected, inside):
    loss = call(name, torch.tensor([chosen]), torch.tensor([rejected]), beta=0.5)
    torch.testing.assert_close(loss, torch.tensor([softplus(-0.5 * inside)]))


def test_every_loss_is_worked_by_hand():
    chosen, rejected = torch.tensor([2.0]), torch.tensor([0.5])
    a, b = 1 / (1 + math.exp(-0.25)), 1 / (1 + math.exp(-0.75))
    values = {
        "dpo": softplus(-0.5 * 1.5),
        "dpop": softplus(-0.5 * 1.5),
        "minordpo": softplus(-0.5 * 1.5),
        "ipo": (1.5 - 1.0) ** 2,  # 1 / (2 beta) = 1
        "rpo_sq": (0.5 * 1.5 - 0.25) ** 2,  # a reward margin of 0.125, twice
        "rpo_bwd_kl": a * math.log(a / b) + (1 - a) * math.log((1 - a) / (1 - b)),
        "rpo_fwd_kl": b * math.log(b / a) + (1 - b) * math.log((1 - b) / (1 - a)),
    }
    assert values.keys() == LOSSES.keys()
    for name, value in values.items():
        loss = call(name, chosen, rejected, beta=0.5, reward_margin=0.125, gt_reward_scale=2.0)
        assert loss.item() == pytest.approx(value, rel=1e-5), name


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("chosen", [-1.7, 0.9])
@pytest.mark.parametrize("rejected", [-0.8, 1.3])
def test_gradient_against_finite_differences(name, chosen, rejected):
    """float64, on both sides of both kinks."""
    values = [torch.tensor([value], dtype=torch.float64, requires_grad=True) for value in (chosen, rejected)]
    call(name, *values, beta=0.1, dpop_lambda=5.0, reward_margin=0.4).sum().backward()
    step = 1e-6
    for index, value in enumerate(values):
        ends = []
        for shift in (step, -step):
            moved = [item.detach().clone() for item in values]
            moved[index] += shift
            ends.append(call(name, *moved, beta=0.1, dpop_lambda=5.0, reward_margin=0.4).item())
        numeric = (ends[0] - ends[1]) / (2 * step)
        assert value.grad is not None
        assert value.grad.item() == pytest.approx(numeric, rel=1e-7, abs=1e-9)


@pytest.mark.parametrize(
    ("rejected", "learns"), [(1.0, True), (1e-6, True), (0.0, False), (-1e-6, False), (-1.0, False)]
)
def test_minordpo_pushes_the_rejected_side_only_above_the_reference(rejected, learns):
    chosen = torch.tensor([2.0], requires_grad=True)
    rejected = torch.tensor([rejected], requires_grad=True)
    minordpo(pairs_with(chosen, rejected), options_with(beta=0.5)).sum().backward()
    assert (rejected.grad.item() > 0) is learns
    assert chosen.grad.item() < 0  # control: the chosen side always learns


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
    changed = {"ref_policy_kl_penalty": {"beta": 0.3}, "dpop_lambda": {"dpop_lambda": 7.0}}
    changed |= {"gt_reward_scale": {"gt_reward_scale": 3.0}}
    read_by_all = {"preference_loss_weight", "sft_loss_weight"}  # of objective()
    options = {item.name for item in dataclasses.fields(Options)}
    assert {name for values in changed.values() for name in values} == options - read_by_all
    for name in LOSSES:
        before = call(name, chosen, rejected, reward_margin=0.25)
        for key, options in changed.items():
            reads = not torch.equal(before, call(name, chosen, rejected, reward_margin=0.25, **options))
            assert reads is config.reads(name, f"model.dpo.{key}"), (name, key)


def test_the_objective_adds_the_likelihood_of_the_chosen_response():
    pairs = pairs_with(torch.tensor([2.0]), torch.tensor([0.5]), log_probs=(-3.0, -4.0))
    options = options_with(beta=0.5, preference_loss_weight=2.0, sft_loss_weight=0.25)
    by_hand = 2 * softplus(-0.75) + 0.25 * 3
    torch.testing.assert_close(objective(dpo, pairs, options), torch.tensor([by_hand]))


def test_a_loss_says_that_it_needs_no_reference():
    def simpo(pairs, options):
        return pairs.chosen_log_probs

    assert needs_reference(simpo)
    simpo.needs_reference = False
    assert not needs_reference(simpo)
    assert all(map(needs_reference, LOSSES.values()))
