"""Our losses against TRL's own, recorded by tests/benchmarks/trl_losses.py in TRL's environment."""

import json
from pathlib import Path

import pytest
import torch

from nemo_minordpo.core.losses import LOSSES, Pairs, objective
from tests.losses import options_with

RECORDED = json.loads(Path(__file__).with_name("trl_losses.json").read_text())
PAIRS = RECORDED["pairs"]
PER_TOKEN = {"preference_average_log_probs": True}
# TRL's name -> our losses with their weights, and the options of ours that make them TRL's
OURS = {
    "sigmoid": ({"dpo": 1.0}, {}),
    "aot": ({"dpo": 1.0}, {}),  # with label smoothing; TRL 1.16 no longer has it for sigmoid
    "robust": ({"robust": 1.0}, {}),
    "hinge": ({"hinge": 1.0}, {}),
    "ipo": ({"ipo": 1.0}, PER_TOKEN),
    "sigmoid_norm": ({"dpo": 1.0}, PER_TOKEN),
    "apo_zero": ({"apo_zero": 1.0}, {}),
    "apo_down": ({"apo_down": 1.0}, {}),
    "nca_pair": ({"nca_pair": 1.0}, {}),
    "sft": ({"sft": 1.0}, {"sft_average_log_probs": True}),
    "sigmoid + sft": ({"dpo": 0.8, "sft": 0.3}, {"sft_average_log_probs": True}),
    "simpo": ({"simpo": 1.0}, {"simpo_gamma": RECORDED["simpo_gamma"]}),
    "simpo, smoothed": ({"simpo": 1.0}, {"simpo_gamma": RECORDED["simpo_gamma"]}),
}


def pairs_of_the_record():
    chosen, rejected = (
        torch.tensor([sum(pair[side]) for pair in PAIRS], dtype=torch.float64) for side in ("chosen", "rejected")
    )
    reference = torch.tensor([pair["reference"] for pair in PAIRS], dtype=torch.float64)
    return Pairs(
        chosen_log_ratio=chosen - reference[:, 0], rejected_log_ratio=rejected - reference[:, 1],
        chosen_log_probs=chosen, rejected_log_probs=rejected, shared_log_probs=torch.zeros_like(chosen),
        chosen_num_tokens=torch.tensor([len(pair["chosen"]) for pair in PAIRS]),
        rejected_num_tokens=torch.tensor([len(pair["rejected"]) for pair in PAIRS]),
        reward_margin=torch.ones_like(chosen),
    )  # fmt: skip


@pytest.mark.parametrize("recorded", RECORDED["losses"], ids=lambda one: f"{one['loss']}, beta {one['beta']}")
def test_values_are_trls(recorded):
    weights, more = OURS[recorded["loss"]]
    options = options_with(beta=recorded["beta"], label_smoothing=recorded["label_smoothing"], **more)
    ours = objective({LOSSES[name]: weight for name, weight in weights.items()}, pairs_of_the_record(), options)
    assert ours.tolist() == pytest.approx(recorded["values"], rel=1e-6, abs=1e-6)


def test_every_recorded_loss_is_compared_at_both_betas():
    assert {one["loss"] for one in RECORDED["losses"]} == OURS.keys()
    assert len(RECORDED["losses"]) == 2 * len(OURS)


def test_the_recorded_losses_differ():
    """Control: a loss compared with the wrong record would be noticed."""
    at_one_beta = [one["values"] for one in RECORDED["losses"] if one["beta"] == 0.5]
    for number, values in enumerate(at_one_beta):
        for others in at_one_beta[:number]:
            assert values != pytest.approx(others, rel=1e-3)
