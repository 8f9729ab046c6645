"""`minordpo train host=bridge` against a loop by hand with transformers, at every layout; checkpoints; exports.

`make test-bridge` runs this in an environment of its own.
"""

import json
import os
import shutil
import subprocess
import sys
from importlib.metadata import distributions
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from nemo_minordpo.records import StepMetrics
from tests.by_hand import LR, load, trained
from tests.comparison import largest, without_measured
from tests.tiny import write_model, write_pairs

pytestmark = pytest.mark.skipif(
    "megatron-bridge" not in {found.name for found in distributions()},
    reason="Megatron-Bridge is not installed: make test-bridge",
)
ROOT = Path(__file__).parents[2]
STEPS = 6
FAMILIES = {"Qwen2": {}, "Qwen3": {"qwen3": True, "tied": True}, "Llama": {"llama": True, "tied": True}}
TP2, PP2 = "model.tensor_model_parallel_size=2", "model.pipeline_model_parallel_size=2"
RECOMPUTE = [
    "model.activations_checkpoint_granularity=full", "model.activations_checkpoint_method=uniform",
    "model.activations_checkpoint_num_layers=1",
]  # fmt: skip
LAYOUTS = {
    "one rank": (1, []),
    "rows of 200, recomputed": (1, ["model.data.packed_sequence_size=200", *RECOMPUTE]),
    "live reference": (1, ["model.dpo.reference_log_probs=live"]),
    "TP2": (2, [TP2]),
    "TP2, sequence parallel": (2, [TP2, "model.sequence_parallel=true", "model.data.packed_sequence_size=200"]),
    "PP2": (2, [PP2, "model.data.packed_sequence_size=200"]),
    "DP2": (2, ["model.data.packed_sequence_size=200"]),
    "TP2 x PP2": (4, [TP2, PP2, "model.data.packed_sequence_size=96"]),
}
# every layout with one family, every family on one rank and at the layout that splits most
CASES = [("Qwen3", layout) for layout in LAYOUTS]
CASES += [(family, layout) for family in ("Qwen2", "Llama") for layout in ("one rank", "TP2 x PP2")]
SGD = ["model.optim.name=sgd", "model.optim.betas=null", f"model.optim.lr={LR}", "model.optim.weight_decay=0"]
ADAM = [
    "model.optim.lr=1e-3", "model.optim.weight_decay=0.01", "trainer.dpo.save_interval=2",
    "exp_manager.checkpoint_callback_params.keep_last=9",
]  # fmt: skip
LORA = [
    *ADAM, "model.peft.peft_scheme=lora", "model.peft.lora_tuning.target_modules=[all]",
    "model.peft.lora_tuning.adapter_dim=2",
]  # fmt: skip
SHARDED = [*ADAM, "model.optim.name=mcore_distributed_optim"]


@pytest.fixture(scope="session")
def workspace(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bridge")
    for family, options in FAMILIES.items():
        write_model(folder / family, **options)
    write_pairs(folder / "train.jsonl", count=22, seed=0)
    write_pairs(folder / "validation.jsonl", count=5, seed=1)
    return folder


@pytest.fixture(scope="session")
def by_hand(workspace):
    """(policy after the last step, metrics of each step), computed once per family."""
    known = {}

    def of(family):
        if family not in known:
            known[family] = trained(workspace / family, workspace / "train.jsonl", num_steps=STEPS)
        return known[family]

    return of


def train(workspace, output, *overrides, family="Qwen3", ranks=1, host="bridge", python=sys.executable, fails=False):
    """Run the command; returns its folder, or its error output if it must fail."""
    start = workspace / family if host == "bridge" else workspace / f"{family}.nemo"
    command = [
        str(python), "-m", "nemo_minordpo", "train", f"host={host}", f"pretrained_checkpoint.restore_from_path={start}",
        f"model.data.data_prefix.train=[{workspace / 'train.jsonl'}]", f"exp_manager.explicit_log_dir={output}",
        "model.dpo.ref_policy_kl_penalty=0.1", "model.global_batch_size=8", f"trainer.devices={ranks}",
        f"trainer.dpo.max_steps={STEPS}", "trainer.dpo.max_epochs=9",
        "exp_manager.create_tensorboard_logger=false", *overrides,
    ]  # fmt: skip
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert (run.returncode != 0) == fails, run.stderr[-20000:]
    return run.stderr if fails else output


def metrics(run, split="train"):
    lines = map(StepMetrics.from_json, (run / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if line.split == split]


@pytest.mark.parametrize(("family", "layout"), CASES)
def test_training_is_that_of_transformers(workspace, by_hand, tmp_path, family, layout):
    ranks, overrides = LAYOUTS[layout]
    run = train(workspace, tmp_path / "run", *SGD, *overrides, family=family, ranks=ranks)
    policy, expected = by_hand(family)
    worst = largest(
        abs(line.values[name] - value) / max(abs(value), 1.0)
        for line, step in zip(metrics(run), expected, strict=True)
        for name, value in step.items()
    )
    print(f"{family}, {layout}: worst relative difference over {STEPS} steps: {worst:.1e}")
    assert worst < 1e-5
    exported, start = AutoModelForCausalLM.from_pretrained(run / "hf"), load(workspace / family)[0]
    for name, weight in policy.named_parameters():
        moved = (weight - start.get_parameter(name)).norm()
        assert moved > 0, name
        assert (exported.get_parameter(name) - weight).norm() < 1e-3 * moved, name


@pytest.mark.parametrize(
    ("trained", "layout"),
    [("adamw", "one rank"), ("adamw", "TP2 x PP2"), ("sharded", "DP2"), ("lora", "TP2"), ("lora", "PP2")],
)
def test_stopping_and_resuming_changes_no_bit(workspace, tmp_path, trained, layout):
    ranks, overrides = LAYOUTS[layout]
    overrides = [*{"adamw": ADAM, "sharded": SHARDED, "lora": LORA}[trained], *overrides]
    whole = train(workspace, tmp_path / "whole", *overrides, ranks=ranks)
    # as if it had been killed after the first checkpoint
    shutil.copytree(whole, tmp_path / "resumed")
    cut_back(tmp_path / "resumed", step=2)
    resumed = train(workspace, tmp_path / "resumed", *overrides, ranks=ranks)
    assert [without_measured(line) for line in metrics(resumed)] == [without_measured(line) for line in metrics(whole)]
    first, second = (load_file(run / "hf/model.safetensors") for run in (whole, resumed))
    assert all(torch.equal(second[name], value) for name, value in first.items())


def test_a_checkpoint_resumes_at_another_layout(workspace, tmp_path):
    whole = train(workspace, tmp_path / "whole", *SHARDED, ranks=2)
    shutil.copytree(whole, tmp_path / "other")
    cut_back(tmp_path / "other", step=4)
    other = train(workspace, tmp_path / "other", *SHARDED, TP2, ranks=2)
    for one, two in zip(metrics(whole), metrics(other), strict=True):
        assert two.values["loss"] == pytest.approx(one.values["loss"], rel=1e-4)


def cut_back(run, *, step):
    """Leave only what a run had at the checkpoint after `step`."""
    shutil.rmtree(run / "hf")
    for checkpoint in (run / "checkpoints").iterdir():
        if checkpoint.name != f"step_{step:06d}":
            shutil.rmtree(checkpoint)
    assert len(list((run / "checkpoints").iterdir())) == 1


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
    again = subprocess.run(
        [sys.executable, "-m", "nemo_minordpo", "train", "host=bridge",
         f"pretrained_checkpoint.restore_from_path={workspace / 'Llama'}",
         f"model.data.data_prefix.train=[{workspace / 'train.jsonl'}]", f"exp_manager.explicit_log_dir={run}",
         "model.dpo.ref_policy_kl_penalty=0.1", "model.global_batch_size=8", f"trainer.dpo.max_steps={STEPS}",
         "trainer.dpo.max_epochs=9", "exp_manager.create_tensorboard_logger=false", *SGD],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "this run is complete" in again.stderr + again.stdout
