"""Export adapters trained at any layout: transformers gives the log-probabilities that training measured."""

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from nemo_minordpo.convert.nemo_to_hf import export_hf
from nemo_minordpo.convert.peft_folder import export_peft
from tests.by_hand import read_rows, sequence, token_log_probs
from tests.comparison import largest

RUNS_OF = ("adapters", "from adapters")

LAYOUTS = ("one", "tp2", "pp2")
# run -> the model it started from
CONTINUED = ("continued_one", "continued_ranks", "continued_tp2", "continued_pp2")
RUNS = {
    "lora": "hf",
    **dict.fromkeys(CONTINUED, "hf"),
    **{f"lora_{layout}": "hf" for layout in LAYOUTS},
    "qwen3_lora": "hf_qwen3",
}


@pytest.fixture(scope="module")
def exported(runs, tmp_path_factory):
    """Merged: runs resumed from one checkpoint at different layouts, one at TP=2 x PP=2, one with q and k norms."""
    folder = tmp_path_factory.mktemp("lora")
    for name in RUNS:
        export_hf(runs.path / name, folder / name)
    export_peft(runs.path / "lora_tp2", folder / "peft")
    return folder


def mean_log_probs(model, workspace, side):
    torch.set_num_threads(1)
    tokenizer = AutoTokenizer.from_pretrained(workspace / "hf")
    with torch.no_grad():
        sums = [
            token_log_probs(model, *sequence(tokenizer, row, side)).double().sum()
            for row in read_rows(workspace / "validation.jsonl")
        ]
    return torch.stack(sums).mean().item()


def load(folder):
    return AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").float()


@pytest.mark.parametrize("name", RUNS)
def test_the_merged_model_is_the_trained_one(runs, exported, name):
    """Against the ranks' own measurements after the last step, with separate adapters."""
    model = load(exported / name)
    measured = runs.metrics(name, "validation")[-1].values
    base = load(runs.path / RUNS[name])
    for side in ("chosen", "rejected"):
        found = mean_log_probs(model, runs.path, f"{side}_response")
        assert found == pytest.approx(measured[f"logps/{side}"], rel=1e-6)
        # control: the adapters change the result
        assert abs(mean_log_probs(base, runs.path, f"{side}_response") - found) > 1e-2


def test_peft_gives_the_same(runs, exported):
    model = PeftModel.from_pretrained(load(runs.path / "hf"), exported / "peft")
    measured = runs.metrics("lora_tp2", "validation")[-1].values
    assert mean_log_probs(model, runs.path, "chosen_response") == pytest.approx(measured["logps/chosen"], rel=1e-6)
    merged, ours = model.merge_and_unload().state_dict(), load(exported / "lora_tp2").state_dict()
    assert merged.keys() == ours.keys()
    assert largest((merged[name] - ours[name]).abs().max().item() for name in ours) < 1e-6


def test_every_layout_exports_the_same(runs, exported):
    """Ten steps from one checkpoint differ by rounding; gates, groups or ranks in the wrong order by far more."""
    wanted = load_file(exported / "lora_one" / "model.safetensors")
    base = load_file(runs.path / "hf" / "model.safetensors")
    learnt = [name for name in wanted if not torch.equal(wanted[name], base[name])]
    assert len(learnt) == 4 * 7  # every linear of four layers
    for layout in LAYOUTS[1:]:
        found = load_file(exported / f"lora_{layout}" / "model.safetensors")
        assert found.keys() == wanted.keys()
        for name, tensor in wanted.items():
            step = (tensor - base[name]).abs().max()
            assert (found[name] - tensor).abs().max() <= 1e-4 * step, (layout, name)


def test_a_run_starts_from_adapters_at_any_layout(runs, exported):
    """Written at TP=2 x PP=2, by Megatron with one file per rank, or as PEFT; alpha and rank come with the adapters.

    `continued_pp2` died after its first step and was resumed on one rank.
    """
    peft = PeftModel.from_pretrained(load(runs.path / "hf"), runs.path / "peft")
    one = runs.metrics("continued_one")
    assert len(one) == 3
    for name in CONTINUED:
        steps = runs.metrics(name)
        assert (steps[0].values["rewards/chosen"], steps[0].values["rewards/rejected"]) == (0, 0)
        for found, wanted in zip(steps, one, strict=True):
            for metric in ("loss", "logps/chosen", "logps/rejected", "grad_norm", "rewards/margin"):
                assert found.values[metric] == pytest.approx(wanted.values[metric], rel=1e-5, abs=1e-6), (name, metric)
        # the reference: the base with the adapters
        last = runs.metrics(name, "validation")[-1].values
        reference = last["logps/chosen"] - last["rewards/chosen"]
        assert mean_log_probs(peft, runs.path, "chosen_response") == pytest.approx(reference, rel=1e-6)
        # control: neither the base alone nor the trained model
        assert abs(mean_log_probs(load(runs.path / "hf"), runs.path, "chosen_response") - reference) > 1e-2
        assert abs(last["rewards/chosen"]) > 1e-3
