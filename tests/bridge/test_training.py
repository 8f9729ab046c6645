"""`minordpo train host=bridge` against a loop by hand with transformers, at every layout; checkpoints; exports.

`make test-bridge` runs this in an environment of its own.
"""

import json

import pytest
import torch
from safetensors.torch import load_file

from tests.bridge.running import (
    ADAM,
    LAYOUTS,
    LORA,
    PP2,
    SGD,
    STEPS,
    TP2,
    metrics,
    needs_bridge,
    require_equal,
    require_same_bits,
    require_same_export,
    resume_from,
    start,
    train,
    write_inputs,
)
from tests.by_hand import trained

pytestmark = needs_bridge
# every layout with one family, every family on one rank and at the layout that splits most
CASES = [("Qwen3", layout) for layout in LAYOUTS]
CASES += [(family, layout) for family in ("Qwen2", "Llama") for layout in ("one rank", "TP2 x PP2")]
SHARDED = [*ADAM, "model.optim.name=mcore_distributed_optim"]


@pytest.fixture(scope="session")
def workspace(tmp_path_factory):
    return write_inputs(tmp_path_factory.mktemp("bridge"))


@pytest.fixture(scope="session")
def by_hand(workspace):
    """(policy after the last step, metrics of each step), computed once per family."""
    known = {}

    def of(family):
        if family not in known:
            known[family] = trained(workspace / family, workspace / "train.jsonl", num_steps=STEPS)
        return known[family]

    return of


@pytest.mark.parametrize(("family", "layout"), CASES)
def test_training_is_that_of_transformers(workspace, by_hand, tmp_path, family, layout):
    ranks, overrides = LAYOUTS[layout]
    run = train(workspace, tmp_path / "run", *SGD, *overrides, family=family, ranks=ranks)
    require_equal(run, workspace / family, by_hand(family))
    require_same_export(run)


@pytest.mark.parametrize(
    ("trained", "layout"),
    [
        ("adamw", "one rank"),
        ("adamw", "TP2 x PP2"),
        ("adamw", "PP2, interleaved"),
        ("sharded", "DP2"),
        ("lora", "TP2"),
        ("lora", "PP2"),
    ],
)
def test_stopping_and_resuming_changes_no_bit(workspace, tmp_path, trained, layout):
    ranks, overrides = LAYOUTS[layout]
    overrides = [*{"adamw": ADAM, "sharded": SHARDED, "lora": LORA}[trained], *overrides]
    whole = train(workspace, tmp_path / "whole", *overrides, ranks=ranks)
    resumed = resume_from(whole, tmp_path / "resumed", step=2)
    train(workspace, resumed, *overrides, ranks=ranks)
    require_same_bits(whole, resumed)


def test_a_checkpoint_resumes_at_another_layout(workspace, tmp_path):
    whole = train(workspace, tmp_path / "whole", *SHARDED, ranks=2)
    other = resume_from(whole, tmp_path / "other", step=4)
    train(workspace, other, *SHARDED, TP2, ranks=2)
    for one, two in zip(metrics(whole), metrics(other), strict=True):
        assert two.values["loss"] == pytest.approx(one.values["loss"], rel=1e-4)


def test_adapters_change_linear_layers_alone(workspace, tmp_path):
    run = train(workspace, tmp_path / "run", *LORA, family="Llama", ranks=2)
    losses = [line.values["loss"] for line in metrics(run)]
    assert losses[-1] < losses[0]
    start, end = (load_file(folder / "model.safetensors") for folder in (workspace / "Llama", run / "hf"))
    changed = {name for name, value in end.items() if not torch.equal(value, start[name])}
    assert changed == {name for name in start if name.endswith("_proj.weight")}
    # the checkpoint has the adapters and their moments: 3 x 4 bytes each, far less than the weights
    size = sum(file.stat().st_size for file in (run / "checkpoints/step_000006").iterdir())
    assert size < (workspace / "Llama/model.safetensors").stat().st_size


def test_bfloat16_follows_float32(workspace, tmp_path):
    overrides = ["model.optim.lr=1e-3", "trainer.dpo.val_check_interval=2",
                 f"model.data.data_prefix.validation=[{workspace / 'validation.jsonl'}]"]  # fmt: skip
    full, low = (
        train(workspace, tmp_path / name, *overrides, f"precision={name}", *LAYOUTS["TP2"][1], ranks=2)
        for name in ("fp32", "bf16")
    )
    for one, two in zip(metrics(full), metrics(low), strict=True):
        assert two.values["loss"] == pytest.approx(one.values["loss"], abs=0.05)
    assert len(metrics(low, "validation")) == 3


def test_the_watch_answers(workspace, tmp_path):
    overrides = ["trainer.dpo.watch.interval=3", "trainer.dpo.watch.num_prompts=3",
                 "trainer.dpo.watch.max_new_tokens=30"]  # fmt: skip
    one = train(workspace, tmp_path / "one", *SGD, *overrides)
    two = train(workspace, tmp_path / "two", *SGD, *overrides, TP2, PP2, ranks=4)
    assert len(metrics(one, "watch")) == 3
    assert (one / "watch/step_000003.jsonl").read_text() == (two / "watch/step_000003.jsonl").read_text()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["pretrained_checkpoint.restore_from_path=x.nemo"], "host=bridge starts from a Hugging Face folder"),
        (["model.optim.name=fused_adam"], "host=bridge does not support model.optim.name=fused_adam yet"),
        (["model.tensor_model_parallel_size=3"], "tensor_model_parallel_size=3 does not divide"),
    ],
)
def test_what_is_refused(workspace, tmp_path, overrides, message):
    error = train(workspace, tmp_path / "run", *overrides, fails=True)
    assert message in error
    assert "Traceback" not in error


def test_the_exported_folder_has_everything(workspace, tmp_path):
    run = train(workspace, tmp_path / "run", *SGD, family="Llama")
    assert json.loads((run / "hf/config.json").read_text())["model_type"] == "llama"
    assert (run / "hf/tokenizer.json").is_file()
    again = start(workspace, tmp_path / "run", *SGD, family="Llama")
    assert again.returncode == 0
    assert "this run is complete" in again.stderr + again.stdout
