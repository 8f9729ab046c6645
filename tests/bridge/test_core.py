"""core/ and layers/ on today's Megatron-Core, through Megatron-Bridge: a few steps of SGD, against transformers.

`make test-bridge` runs this in an environment of its own. The reference is a loop over single sequences with
transformers' model, torch's cross-entropy and torch's SGD.
"""

import json
import os
import subprocess
import sys
from importlib.metadata import distributions
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file
from torch.nn.functional import cross_entropy

from nemo_minordpo.core.losses import LOSSES, Pairs, objective
from tests.bridge import pairs

pytestmark = pytest.mark.skipif(
    "megatron-bridge" not in {found.name for found in distributions()},
    reason="Megatron-Bridge is not installed: make test-bridge",
)
ROOT = Path(__file__).parents[2]
_SIZES = {
    "vocab_size": pairs.VOCABULARY, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128,
}  # fmt: skip
FAMILIES = {
    "Qwen2": {"tie_word_embeddings": False},
    "Llama": {"tie_word_embeddings": True},
    "Qwen3": {"tie_word_embeddings": True, "head_dim": 32},
}
LAYOUTS = {
    "one rank": (1, []),
    "TP2": (2, ["--tensor", "2"]),
    "TP2, sequence parallel": (2, ["--tensor", "2", "--sequence-parallel"]),
    "PP2": (2, ["--pipeline", "2"]),
    "DP2": (2, []),
    "TP2 x PP2": (4, ["--tensor", "2", "--pipeline", "2"]),
}
# every family on one rank and at the layout that splits most; every layout with one family
CASES = [("Qwen3", layout) for layout in LAYOUTS]
CASES += [(family, layout) for family in ("Qwen2", "Llama") for layout in ("one rank", "TP2 x PP2")]


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    """Folders with random weights, by family."""
    made = {}
    for family, options in FAMILIES.items():
        torch.manual_seed(0)
        config = getattr(transformers, f"{family}Config")(**_SIZES, **options)
        made[family] = tmp_path_factory.mktemp(family)
        getattr(transformers, f"{family}ForCausalLM")(config).save_pretrained(made[family])
    return made


@pytest.fixture(scope="session")
def plain(models):
    """(loss and norm of each step, weights after the last one), computed once per family."""
    known = {}

    def of(family):
        if family not in known:
            known[family] = trained(models[family])
        return known[family]

    return of


def trained(folder):
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    optimizer = torch.optim.SGD(model.parameters(), lr=pairs.LEARNING_RATE)
    every, lines = pairs.pairs(), []

    def log_prob(tokens, start):
        tokens = torch.from_numpy(tokens)
        logits = model(tokens[None]).logits[0, start - 1 : -1].double()
        return -cross_entropy(logits, tokens[start:], reduction="sum")

    for _ in range(pairs.STEPS):
        chosen = torch.stack([log_prob(pair.chosen, pair.num_prompt) for pair in every])
        rejected = torch.stack([log_prob(pair.rejected, pair.num_prompt) for pair in every])
        reference = torch.tensor(pairs.reference_of(every), dtype=torch.float64).chunk(2)
        counts = torch.ones(len(every), dtype=torch.int64)
        some = Pairs(
            chosen_log_ratio=chosen - reference[0], rejected_log_ratio=rejected - reference[1],
            chosen_log_probs=chosen, rejected_log_probs=rejected, shared_log_probs=chosen,
            chosen_num_tokens=counts, rejected_num_tokens=counts, reward_margin=torch.zeros_like(chosen),
        )  # fmt: skip
        loss = objective({LOSSES[pairs.LOSS]: 1.0}, some, pairs.options()).mean()
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), pairs.CLIP)
        optimizer.step()
        lines.append({"loss": loss.item(), "grad_norm": norm.item()})
    return lines, {name: value.detach().clone() for name, value in model.state_dict().items()}


@pytest.mark.parametrize(("family", "layout"), CASES)
def test_training_is_that_of_transformers(models, plain, tmp_path, family, layout):
    ranks, options = LAYOUTS[layout]
    command = [
        sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={ranks}", "--master-port=0",
        "--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0", "-m", "tests.bridge.worker",
        str(models[family]), str(tmp_path / "out"), *options,
    ]  # fmt: skip
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert run.returncode == 0, run.stderr[-20000:]
    lines, weights = plain(family)
    found = json.loads((tmp_path / "out/steps.json").read_text())
    for step, (mine, expected) in enumerate(zip(found, lines, strict=True), start=1):
        assert mine == pytest.approx(expected, rel=1e-5), f"step {step}"
    exported = load_file(tmp_path / "out/model.safetensors")
    assert set(exported) >= {name for name in weights if name != "lm_head.weight"}
    start = load_file(models[family] / "model.safetensors")
    for name, value in exported.items():
        moved = (weights[name] - start[name]).norm()
        rounding = torch.finfo(value.dtype).eps * value.norm()
        assert (value - weights[name]).norm() <= 1e-5 * moved + rounding, name
        assert moved > 100 * rounding, f"{name} was not trained"
