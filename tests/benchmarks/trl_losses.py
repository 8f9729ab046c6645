"""The losses of TRL for a few pairs, which tests/unit/core/test_trl.py compares with ours.

Runs in TRL's environment and imports nothing of ours:

    .venv-trl/bin/python -m tests.benchmarks.trl_losses > tests/unit/core/trl_losses.json

Every value comes from TRL's own `DPOTrainer._compute_loss` (SimPO: `CPOTrainer.cpo_loss`), called with a batch of one
pair in float64, so that the mean over the batch is the pair's own. Only the model is made up: it returns the token
log-probabilities that are given here.
"""

import json
import sys
from collections import defaultdict
from importlib.metadata import version
from types import SimpleNamespace
from typing import Any

import torch
from trl import DPOTrainer
from trl.experimental.cpo import CPOTrainer

# (chosen, rejected): log-probabilities of the tokens, and the reference's sums.
PAIRS = [
    {"chosen": [-0.5, -1.25, -0.25], "rejected": [-2.0, -1.5], "reference": [-2.75, -3.0]},
    {"chosen": [-3.0, -0.75], "rejected": [-0.5, -0.25, -1.0, -0.125], "reference": [-2.5, -2.25]},
    {"chosen": [-4.0], "rejected": [-1.0, -2.0, -8.5], "reference": [-3.0, -6.0]},
    {"chosen": [-0.25, -0.5, -0.125, -1.5], "rejected": [-0.75], "reference": [-12.0, -4.5]},
]
BETAS = (0.1, 0.5)
# name: (loss types, weights, label smoothing); aot sorts a batch: for one pair it is conservative DPO
LOSSES = {
    "sigmoid": (["sigmoid"], [1.0], 0.0),
    "aot": (["aot"], [1.0], 0.1),
    "robust": (["robust"], [1.0], 0.1),
    "hinge": (["hinge"], [1.0], 0.0),
    "ipo": (["ipo"], [1.0], 0.0),
    "sigmoid_norm": (["sigmoid_norm"], [1.0], 0.0),
    "apo_zero": (["apo_zero"], [1.0], 0.0),
    "apo_down": (["apo_down"], [1.0], 0.0),
    "nca_pair": (["nca_pair"], [1.0], 0.0),
    "sft": (["sft"], [1.0], 0.0),
    "sigmoid + sft": (["sigmoid", "sft"], [0.8, 0.3], 0.0),
}
SIMPO = {"simpo": 0.0, "simpo, smoothed": 0.1}  # name: label smoothing
GAMMA = 0.4


def main() -> None:
    values = [
        {
            "loss": name,
            "beta": beta,
            "label_smoothing": settings[2],
            "values": [_dpo(pair, beta, settings) for pair in PAIRS],
        }
        for beta in BETAS
        for name, settings in LOSSES.items()
    ]
    values += [
        {
            "loss": name,
            "beta": beta,
            "label_smoothing": smoothing,
            "values": [_simpo(p, beta, smoothing) for p in PAIRS],
        }
        for beta in BETAS
        for name, smoothing in SIMPO.items()
    ]
    made = {"trl": version("trl"), "torch": version("torch"), "simpo_gamma": GAMMA, "pairs": PAIRS, "losses": values}
    json.dump(made, sys.stdout, indent=1)
    sys.stdout.write("\n")


def _dpo(pair: dict[str, list[float]], beta: float, settings: tuple[list[str], list[float], float]) -> float:
    loss_types, weights, smoothing = settings
    sides = [pair["chosen"], pair["rejected"]]
    longest = max(map(len, sides))
    log_probs = torch.zeros(2, longest, dtype=torch.float64)
    mask = torch.zeros(2, longest + 1, dtype=torch.int64)  # one token of prompt
    for row, side in enumerate(sides):
        log_probs[row, : len(side)] = torch.tensor(side, dtype=torch.float64)
        mask[row, 1 : len(side) + 1] = 1
    outputs = SimpleNamespace(
        log_probs=log_probs,
        entropy=torch.zeros_like(log_probs),
        mean_logits=torch.zeros_like(log_probs),
        is_top1=torch.zeros_like(log_probs, dtype=torch.bool),
    )
    reference = torch.tensor(pair["reference"], dtype=torch.float64)
    inputs = {
        "input_ids": torch.ones_like(mask),
        "attention_mask": torch.ones_like(mask),
        "completion_mask": mask,
        "ref_chosen_logps": reference[:1],
        "ref_rejected_logps": reference[1:],
    }
    trainer: Any = SimpleNamespace(
        model=SimpleNamespace(training=False),
        accelerator=SimpleNamespace(device="cpu", gather=_same, gather_for_metrics=_same),
        aux_loss_enabled=False, ld_alpha=None, precompute_ref_logps=True, f_divergence_type="reverse_kl",
        loss_types=loss_types, loss_weights=weights, beta=beta, label_smoothing=smoothing, use_weighting=False,
        _metrics={"eval": defaultdict(list)}, _total_train_tokens=0,
    )  # fmt: skip
    return DPOTrainer._compute_loss(trainer, lambda **unused: outputs, inputs, False).item()


def _simpo(pair: dict[str, list[float]], beta: float, smoothing: float) -> float:
    trainer: Any = SimpleNamespace(
        alpha=0.0, accelerator=SimpleNamespace(device="cpu"), loss_type="simpo", simpo_gamma=GAMMA, beta=beta,
        label_smoothing=smoothing,
    )  # fmt: skip
    means = [torch.tensor([sum(side) / len(side)], dtype=torch.float64) for side in (pair["chosen"], pair["rejected"])]
    losses, _, _ = CPOTrainer.cpo_loss(trainer, *means)
    return losses.item()


def _same(value: torch.Tensor) -> torch.Tensor:
    return value


if __name__ == "__main__":
    main()
