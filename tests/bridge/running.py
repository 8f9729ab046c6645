"""`minordpo train` in a process of its own, and what its runs must equal."""

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

from nemo_minordpo.convert.checkpoint import Checkpoint
from nemo_minordpo.convert.facts import facts_from_config, read_config
from nemo_minordpo.convert.mapping import mapping_table
from nemo_minordpo.records import StepMetrics
from tests.by_hand import LR, load
from tests.comparison import largest, without_measured
from tests.tiny import write_model, write_pairs

ROOT = Path(__file__).parents[2]
STEPS = 6
needs_bridge = pytest.mark.skipif(
    "megatron-bridge" not in {found.name for found in distributions()},
    reason="Megatron-Bridge is not installed: make test-bridge",
)
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
    "PP2, interleaved": (
        2,
        [PP2, "model.virtual_pipeline_model_parallel_size=2", "model.data.packed_sequence_size=200"],
    ),
    "DP2": (2, ["model.data.packed_sequence_size=200"]),
    "TP2 x PP2": (4, [TP2, PP2, "model.data.packed_sequence_size=96"]),
}
SGD = ["model.optim.name=sgd", "model.optim.betas=null", f"model.optim.lr={LR}", "model.optim.weight_decay=0"]
ADAM = [
    "model.optim.lr=1e-3", "model.optim.weight_decay=0.01", "trainer.dpo.save_interval=2",
    "exp_manager.checkpoint_callback_params.keep_last=9",
]  # fmt: skip
LORA = [
    *ADAM, "model.peft.peft_scheme=lora", "model.peft.lora_tuning.target_modules=[all]",
    "model.peft.lora_tuning.adapter_dim=2",
]  # fmt: skip


def write_inputs(folder):
    """Write a model of each family, and pairs to train and to validate on; returns the folder."""
    for family, options in FAMILIES.items():
        write_model(folder / family, **options)
    write_pairs(folder / "train.jsonl", count=22, seed=0)
    write_pairs(folder / "validation.jsonl", count=5, seed=1)
    return folder


def start(workspace, output, *overrides, family="Qwen3", ranks=1, host="bridge", python=sys.executable):
    """Run the command; returns the finished process."""
    model = workspace / family if host == "bridge" else workspace / f"{family}.nemo"
    command = [
        str(python), "-m", "nemo_minordpo", "train", f"host={host}", f"pretrained_checkpoint.restore_from_path={model}",
        f"model.data.data_prefix.train=[{workspace / 'train.jsonl'}]", f"exp_manager.explicit_log_dir={output}",
        "model.dpo.ref_policy_kl_penalty=0.1", "model.global_batch_size=8", f"trainer.devices={ranks}",
        f"trainer.dpo.max_steps={STEPS}", "trainer.dpo.max_epochs=9",
        "exp_manager.create_tensorboard_logger=false", *overrides,
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)


def train(workspace, output, *overrides, fails=False, **named):
    """Run the command; returns its folder, or its error output if it must fail."""
    run = start(workspace, output, *overrides, **named)
    assert (run.returncode != 0) == fails, run.stderr[-20000:]
    return run.stderr if fails else output


def metrics(run, split="train"):
    lines = map(StepMetrics.from_json, (run / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if line.split == split]


def require_equal(run, model, expected):
    """Loss, rewards and norm of every step as by hand, and the exported weights, relative to how far they moved.

    expected: from by_hand.trained.
    """
    policy, steps = expected
    worst = largest(
        abs(line.values[name] - value) / max(abs(value), 1.0)
        for line, step in zip(metrics(run), steps, strict=True)
        for name, value in step.items()
    )
    print(f"{run}: worst relative difference over {STEPS} steps: {worst:.1e}")
    assert worst < 1e-5
    exported, before = AutoModelForCausalLM.from_pretrained(run / "hf"), load(model)[0]
    for name, weight in policy.named_parameters():
        moved = (weight - before.get_parameter(name)).norm()
        assert moved > 0, name
        assert (exported.get_parameter(name) - weight).norm() < 1e-3 * moved, name


def require_same_export(run):
    """Our own mapping from the checkpoint (convert/mapping.py) gives the bits that AutoBridge exported."""
    facts = facts_from_config(read_config(run / "hf"), where=str(run))
    (newest,) = (run / "checkpoints").iterdir()
    checkpoint, exported = Checkpoint(newest), load_file(run / "hf/model.safetensors")
    for row in mapping_table(facts):
        for layer in row.layers(facts):
            parts = row.split(checkpoint.read(row.megatron, layer=layer), facts)
            for name, part in zip(row.hf_names(layer), parts, strict=True):
                assert torch.equal(exported.pop(name), part), name
    assert exported.keys() <= {"lm_head.weight"}  # of a tied model


def resume_from(run, copy, *, step):
    """A copy of a run as it was after the checkpoint of `step`, as if it had been killed then; returns its folder."""
    shutil.copytree(run, copy)
    shutil.rmtree(copy / "hf")
    for checkpoint in (copy / "checkpoints").iterdir():
        if checkpoint.name != f"step_{step:06d}":
            shutil.rmtree(checkpoint)
    assert len(list((copy / "checkpoints").iterdir())) == 1
    return copy


def require_same_bits(one, two):
    """All metrics but measured ones, and the exported weights."""
    assert [without_measured(line) for line in metrics(two)] == [without_measured(line) for line in metrics(one)]
    first, second = (load_file(run / "hf/model.safetensors") for run in (one, two))
    assert all(torch.equal(second[name], value) for name, value in first.items())
