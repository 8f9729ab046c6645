"""Megatron against transformers on the same weights: log-probabilities, and a hand-written training loop."""

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from nemo_minordpo.convert.nemo_to_hf import export_hf
from tests.by_hand import BETA, LR, load, read_rows, sequence, step_rows, token_log_probs, trained
from tests.comparison import largest
from tests.parallel.runs_of import NUM_STEPS
from tests.parallel.test_layouts import COMPARED, worst_relative_difference

RUNS_OF = ("layouts", "losses")


@pytest.mark.parametrize("ranks", ["one", "tp2"])
def test_log_probs_equal_transformers(runs, workspace, ranks):
    model, tokenizer = load(workspace / "hf")
    recorded = torch.load(workspace / f"log_probs_{ranks}.pt")
    rows = read_rows(workspace / "train.jsonl")
    token_errors, sequence_errors, num_tokens, shifted = [], [], 0, []
    with torch.no_grad():
        for (pair, rejected), (tokens, total) in recorded.items():
            side = "rejected_response" if rejected else "chosen_response"
            expected = token_log_probs(model, *sequence(tokenizer, rows[pair], side))
            assert len(tokens) == len(expected)
            token_errors.append((tokens - expected).abs().max().item())
            sequence_errors.append(abs(total.item() - expected.double().sum().item()))
            shifted.append((tokens.roll(1) - expected).abs().max().item())
            num_tokens += len(tokens)
    print(f"{ranks}: token {max(token_errors):.1e} nats, sequence {max(sequence_errors):.1e} nats")
    assert len(recorded) == 16  # both responses of the first step's eight pairs
    assert num_tokens > 300
    assert largest(token_errors) < 5e-6
    assert largest(sequence_errors) < 5e-5
    assert max(shifted) > 0.1  # control: shifted by one place


@pytest.mark.parametrize(("model", "run"), [("hf", "one"), ("hf_qwen3", "qwen3_tp2")])
def test_ten_steps_equal_a_loop_by_hand(runs, workspace, tmp_path, model, run):
    """MinorDPO with SGD in plain PyTorch: same pairs, learning rate and clipping, hence the same weights."""
    policy, expected = trained(workspace / model, workspace / "train.jsonl", num_steps=NUM_STEPS)
    lines = runs.metrics(run)
    worst = largest(
        abs(line.values[name] - value) / max(abs(value), 1.0)
        for line, by_hand in zip(lines, expected, strict=True)
        for name, value in by_hand.items()
    )
    print(f"{run}: worst relative difference over {NUM_STEPS} steps: {worst:.1e}")
    assert worst < 1e-4
    export_hf(workspace / run, tmp_path / "trained")
    exported, start = AutoModelForCausalLM.from_pretrained(tmp_path / "trained"), load(workspace / model)[0]
    for name, weight in policy.named_parameters():
        moved = (weight - start.get_parameter(name)).norm()
        assert moved > 0
        assert (exported.get_parameter(name) - weight).norm() < 1e-3 * moved, name


def test_the_first_step_learns(runs):
    """Upstream's schedules start with a learning rate of 0; ours does not."""
    rates = [line.values["lr"] for line in runs.metrics("one")]
    assert rates[0] > 0
    assert rates[1] == LR
    assert rates == sorted(rates[:1]) + sorted(rates[1:], reverse=True)
    assert all(0 < rate <= LR for rate in runs_rates(runs, "cosine"))
    assert runs_rates(runs, "cosine")[:3] == pytest.approx([LR / 3, 2 * LR / 3, LR])


def runs_rates(runs, name):
    return [line.values["lr"] for line in runs.metrics(name)]


def test_every_loss_trains(runs):
    """Upstream's losses and ours through the same step; each has a known value at the first step."""
    rows = step_rows(read_rows(runs.path / "train.jsonl"), 0)
    margin = np.array([row["chosen_reward"] - row["rejected_reward"] for row in rows])
    sigmoid = 1 / (1 + np.exp(-margin))
    first = {
        "dpo": np.log(2),
        "dpop": np.log(2),
        "ipo": (1 / (2 * BETA)) ** 2,
        "rpo_sq": np.mean(margin**2),
        "rpo_bwd_kl": np.mean(sigmoid * np.log(2 * sigmoid) + (1 - sigmoid) * np.log(2 * (1 - sigmoid))),
        "rpo_fwd_kl": np.mean(-0.5 * np.log(4 * sigmoid * (1 - sigmoid))),
    }
    for name, value in first.items():
        lines = runs.metrics(f"loss_{name}")
        assert lines[0].values["loss"] == pytest.approx(value, rel=1e-5), name
        assert lines[-1].values["loss"] < lines[0].values["loss"], name
    lines = runs.metrics("loss_simpo")
    assert lines[-1].values["loss"] < lines[0].values["loss"]
    assert lines[0].values["rewards/chosen"] == lines[0].values["logps/chosen"] < -1  # it has no reference
    lines = runs.metrics("sft")
    assert lines[0].values["loss"] == pytest.approx(np.log(2) - 0.5 * lines[0].values["logps/chosen"], rel=1e-6)


def test_a_mix_that_reads_every_input_is_the_same_on_two_ranks(runs):
    one, two = runs.metrics("mix_one"), runs.metrics("mix_dp2")
    assert one[-1].values["loss"] < one[0].values["loss"]
    assert largest(worst_relative_difference(one, two, name) for name in COMPARED) < 1e-5
