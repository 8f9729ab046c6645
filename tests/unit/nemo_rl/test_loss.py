"""The losses in NeMo-RL's layout: against NeMo-RL's own DPO, against each pair on its own, and split in any way."""

import pytest
import torch
from nemo_rl.algorithms.loss import DPOLossConfig, DPOLossFn

from nemo_minordpo.config import LOSS_NAMES, DPOSection
from nemo_minordpo.config.model_sections import RPO
from nemo_minordpo.core.losses import LOSSES, Pairs
from nemo_minordpo.core.metrics import PAIR_METRICS
from nemo_minordpo.core.objective import options_of
from nemo_minordpo.nemo_rl.loss import MinorDPOLossFn, pairs_of

PAIRS, LENGTH = 6, 14
SUPPORTED = [name for name in LOSS_NAMES if name not in RPO]


def config(**settings):
    return DPOLossConfig(**{"reference_policy_kl_penalty": 0.3, **settings})


@pytest.fixture
def batch():
    """Log-probabilities [12, 13] that need gradients, and a batch; the last pair only fills it up."""
    random = torch.Generator().manual_seed(5)
    rows = 2 * PAIRS
    log_probs = -3 * torch.rand(rows, LENGTH - 1, generator=random)
    mask = torch.zeros(rows, LENGTH)
    for row in range(rows):
        mask[row, 4 : 7 + int(torch.randint(7, (1,), generator=random))] = 1
    ids = torch.randint(3, (rows, LENGTH), generator=random)
    ids[1::2, :6] = ids[::2, :6]
    return log_probs.requires_grad_(), {
        "input_ids": ids,
        "token_mask": mask,
        "sample_mask": torch.tensor([1.0] * (rows - 2) + [0.0, 0.0]),
        "reference_policy_logprobs": -3 * torch.rand(rows, LENGTH, generator=random),
    }


def evaluated(loss_fn, log_probs, data, *, valid=2 * PAIRS - 2):
    loss, metrics = loss_fn(log_probs, data, torch.tensor(float(valid)), torch.tensor(1.0))
    (gradient,) = torch.autograd.grad(loss, log_probs)
    return loss, gradient, metrics


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"preference_average_log_probs": True},
        {"sft_loss_weight": 0.2, "preference_loss_weight": 0.7},
        {"sft_loss_weight": 0.2, "sft_average_log_probs": True, "preference_average_log_probs": True},
    ],
)
def test_dpo_is_that_of_nemo_rl(batch, settings):
    theirs = evaluated(DPOLossFn(config(**settings)), *batch)
    ours = evaluated(MinorDPOLossFn(config(preference_loss="dpo", **settings)), *batch)
    torch.testing.assert_close(ours[0], theirs[0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(ours[1], theirs[1], rtol=1e-5, atol=1e-6)
    if not settings.get("preference_average_log_probs"):  # ours are sums in any case, as in all its metrics
        assert {name: ours[2][name] for name in theirs[2]} == pytest.approx(theirs[2], rel=1e-5)
    other = evaluated(MinorDPOLossFn(config(preference_loss="minordpo", **settings)), *batch)
    assert (other[1] - theirs[1]).abs().max() > 1e-3  # the control


@pytest.mark.parametrize("name", SUPPORTED)
def test_each_loss_is_its_value_for_each_pair(batch, name):
    log_probs, data = batch
    options = options_of(DPOSection(ref_policy_kl_penalty=0.3, preference_loss=name))
    total = torch.tensor(0.0, dtype=torch.float64)
    for pair in range(PAIRS - 1):
        sums = []
        for row in (2 * pair, 2 * pair + 1):
            places = [t for t in range(LENGTH - 1) if data["token_mask"][row, t + 1]]
            policy = sum(log_probs[row, t].double() for t in places)
            reference = sum(data["reference_policy_logprobs"][row, t].double() for t in places)
            sums.append((policy, policy - reference, len(places)))
        (chosen, chosen_ratio, chosen_tokens), (rejected, rejected_ratio, rejected_tokens) = sums
        one = Pairs(
            chosen_log_ratio=chosen_ratio[None], rejected_log_ratio=rejected_ratio[None],
            chosen_log_probs=chosen[None], rejected_log_probs=rejected[None],
            shared_log_probs=chosen[None], chosen_num_tokens=torch.tensor([chosen_tokens]),
            rejected_num_tokens=torch.tensor([rejected_tokens]), reward_margin=torch.zeros(1),
        )  # fmt: skip
        total = total + LOSSES[name](one, options).sum()
    loss, gradient, metrics = evaluated(MinorDPOLossFn(config(preference_loss=name)), *batch)
    (expected,) = torch.autograd.grad(total / (PAIRS - 1), log_probs)
    torch.testing.assert_close(loss.double(), total / (PAIRS - 1), rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=1e-7)
    assert metrics["loss"] == pytest.approx(loss.item())


def test_a_mix_is_the_weighted_sum(batch):
    parts = [evaluated(MinorDPOLossFn(config(preference_loss=name)), *batch)[0] for name in ("minordpo", "hinge")]
    mixed = evaluated(MinorDPOLossFn(config(preference_loss={"minordpo": 1.0, "hinge": 0.25})), *batch)[0]
    torch.testing.assert_close(mixed, parts[0] + 0.25 * parts[1])


@pytest.mark.parametrize("split", [[2] * PAIRS, [4, 2, 6], [10, 2]])
def test_micro_batches_sum_to_the_batch(batch, split):
    """The last micro-batch of the first and third split has no valid pair."""
    log_probs, data = batch
    loss_fn = MinorDPOLossFn(config(preference_loss="minordpo", sft_loss_weight=0.1))
    whole = evaluated(loss_fn, log_probs, data)
    parts = [
        evaluated(loss_fn, part, dict(zip(data, values, strict=True)))
        for part, *values in zip(log_probs.split(split), *(one.split(split) for one in data.values()), strict=True)
    ]
    torch.testing.assert_close(sum(part[0] for part in parts), whole[0])
    torch.testing.assert_close(torch.cat([part[1] for part in parts]), whole[1])
    for name, value in whole[2].items():
        assert sum(part[2][name] for part in parts) == pytest.approx(value), name


def test_metrics_have_the_names_of_both(batch):
    metrics = evaluated(MinorDPOLossFn(config()), *batch)[2]
    assert {*PAIR_METRICS, "accuracy", "rewards_chosen_mean", "num_valid_samples"} <= set(metrics)
    assert metrics["rewards/chosen"] == metrics["rewards_chosen_mean"]
    assert metrics["num_valid_samples"] == PAIRS - 1


def test_tokens_before_the_first_difference_are_shared(batch):
    log_probs, data = batch
    shared = pairs_of(log_probs, data).shared_log_probs
    assert len(shared) == PAIRS - 1
    for pair in range(PAIRS - 1):
        ids, mask = data["input_ids"], data["token_mask"]
        values = log_probs.detach()
        total, place = 0.0, 1
        while place < LENGTH and ids[2 * pair, place] == ids[2 * pair + 1, place]:
            total += float(values[2 * pair, place - 1]) * float(mask[2 * pair, place] * mask[2 * pair + 1, place])
            place += 1
        assert shared[pair].item() == pytest.approx(total, abs=1e-6)


def test_what_is_not_a_response_may_be_anything(batch):
    """Padding, and pairs that fill up a batch."""
    log_probs, data = batch
    loss_fn = MinorDPOLossFn(config(preference_loss="dpop"))
    expected = evaluated(loss_fn, log_probs, data)
    changed = log_probs.detach().clone()
    changed[data["token_mask"][:, 1:] == 0] = torch.nan
    changed[-2:] = torch.inf
    loss, gradient, metrics = evaluated(loss_fn, changed.requires_grad_(), data)
    torch.testing.assert_close(loss, expected[0])
    torch.testing.assert_close(gradient, expected[1])
    assert metrics == pytest.approx(expected[2])


def test_a_valid_pair_must_be_finite(batch):
    log_probs, data = batch
    broken = log_probs.detach().clone()
    broken[2, 4] = torch.nan
    with pytest.raises(FloatingPointError, match=r"rewards/chosen.*1 of 5 pairs"):
        evaluated(MinorDPOLossFn(config()), broken.requires_grad_(), data)


def test_the_loss_can_be_sent_to_workers(batch):
    cloudpickle = pytest.importorskip("cloudpickle")
    loss_fn = MinorDPOLossFn(config(preference_loss="minordpo"))
    sent = cloudpickle.loads(cloudpickle.dumps(loss_fn))
    assert torch.equal(evaluated(sent, *batch)[1], evaluated(loss_fn, *batch)[1])
