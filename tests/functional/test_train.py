"""`minordpo train` as a user calls it: what it refuses, and one run on two ranks with everything that follows."""

import json
import math
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file

from nemo_minordpo.config import default_of
from nemo_minordpo.convert.hf_to_nemo import import_hf
from nemo_minordpo.convert.nemo_to_hf import export_hf
from nemo_minordpo.pairs.tokens import load_arrays
from nemo_minordpo.report.runs import read_run
from nemo_minordpo.train.data.dataset import pairs_of_step
from tests.tiny import write_model

ROOT = Path(__file__).parent.parent.parent


def minordpo(*arguments, timeout=400, env=None, cwd=ROOT):
    return subprocess.run(
        [sys.executable, "-m", "nemo_minordpo", *map(str, arguments)],
        cwd=cwd,
        env=env,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=timeout,
        check=False,
    )


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("train")
    write_model(folder / "hf")
    import_hf(folder / "hf", folder / "base.nemo")
    rows = [
        {"prompt": f"What is {a} plus 2?\n", "chosen_response": f"It is {a + 2}", "rejected_response": f"It is {a + 3}"}
        for a in range(10)
    ]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "bad.jsonl").write_text(json.dumps(rows[0]) + "\n{broken\n")
    return folder


def command(place, run, *overrides):
    return [
        "train",
        f"pretrained_checkpoint.restore_from_path={place}/base.nemo",
        f"model.data.data_prefix.train=[{place}/train.jsonl]",
        f"model.data.data_prefix.validation=[{place}/train.jsonl]",
        f"exp_manager.explicit_log_dir={place / run}",
        "model.dpo.ref_policy_kl_penalty=0.1",
        "model.global_batch_size=4",
        "model.optim.lr=1e-3",
        *overrides,
    ]


@pytest.fixture(scope="module")
def reference(place):
    """`minordpo reference`, on two ranks, before any run."""
    arguments = command(place, "reference", "trainer.devices=2", "model.tensor_model_parallel_size=2")
    return minordpo("reference", *arguments[1:])


@pytest.fixture(scope="module")
def run(place, reference):
    arguments = command(
        place, "run", "trainer.devices=2", "model.tensor_model_parallel_size=2", "trainer.dpo.max_epochs=2",
        "trainer.dpo.val_check_interval=2", "trainer.dpo.save_interval=3", "model.dpo.preference_loss=dpop",
    )  # fmt: skip
    return arguments, minordpo(*arguments)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.dpo.preference_loss=minor"], "is unknown; known: dpo, dpop, minordpo, ipo"),
        (["model.dpo.ref_policy_kl_penalty=null"], "ref_policy_kl_penalty"),
        (["model.data.data_prefix.train=[nowhere.jsonl]"], "'nowhere.jsonl' matches no file"),
        (["pretrained_checkpoint.restore_from_path=nowhere.nemo"], "no such file or folder"),
        (
            ["trainer.devices=3", "model.tensor_model_parallel_size=3", "model.global_batch_size=3"],
            "nearest layouts of 3 ranks",
        ),
        (["trainer.num_nodes=2"], "start one process per rank with srun or torchrun"),
        (["+model.tokenizer.type=/nowhere"], "set +model.tokenizer.type=FOLDER"),
        (["+model.hiden_dropout=0.1"], "did you mean 'hidden_dropout'"),
        (["model.micro_batch_size=4"], "a micro-batch is one row of packed pairs"),
        (["model.data.packed_sequence_size=16"], "or more, or a smaller model.data.seq_length"),
        (["+model.position_embedding_type=alibi"], "which only rope and learned_absolute support"),
        (["model.dpo.reference_log_probs=catched"], "did you mean 'cached'"),
        (
            ["pretrained_checkpoint.reference_from_path=other.nemo", "model.dpo.reference_log_probs=live"],
            "does not work with model.dpo.reference_log_probs=live",
        ),
        (["pretrained_checkpoint.reference_from_path=nowhere.nemo"], "nowhere.nemo: no such file"),
        (["model.peft.peft_scheme=lora", "model.peft.restore_from_path=nowhere.nemo"], "no such file"),
    ],
)
def test_refused_in_seconds_without_a_traceback(place, overrides, message):
    result = minordpo(*command(place, "refused", *overrides), timeout=60)
    assert result.returncode == 2, result.stderr
    assert message in " ".join(result.stderr.split())
    assert "Traceback" not in result.stderr
    assert not (place / "refused/config.yaml").exists()


def test_a_bad_pair_is_reported_before_anything_is_loaded(place):
    result = minordpo(*command(place, "bad", f"model.data.data_prefix.train=[{place}/bad.jsonl]"), timeout=60)
    assert result.returncode == 2
    assert "bad.jsonl:2: invalid JSON" in result.stderr
    assert "model.data.invalid_pairs=drop" in result.stderr


def test_the_reference_command(place, reference):
    """It stops before the first step, and leaves no metrics or model."""
    assert reference.returncode == 0, reference.stderr[-3000:]
    assert "reference log-probabilities: nothing cached yet; evaluating 10 pairs" in reference.stderr
    assert not (place / "reference/metrics.jsonl").exists()
    assert not (place / "reference/model.nemo").exists()
    entries = sorted(path.suffix for path in (place / "reference_cache").iterdir() if path.suffix != ".lock")
    assert entries == [".json", ".safetensors"]  # train and validation are the same pairs


def test_the_run_reads_the_cached_reference(place, run):
    assert "; evaluating " not in run[1].stderr
    assert len(list((place / "reference_cache").glob("*.safetensors"))) == 1


def test_a_damaged_reference_is_refused(place, run):
    (columns,) = (place / "reference_cache").glob("*.safetensors")
    whole = columns.read_bytes()
    columns.write_bytes(whole[:-8] + bytes(8))
    result = minordpo(*command(place, "damaged_reference"))
    columns.write_bytes(whole)
    assert result.returncode != 0
    assert "is damaged: its checksum does not match" in result.stderr


@pytest.fixture(scope="module")
def diverging(place, reference):
    """A run on two ranks whose first step makes weights whose logits overflow float32."""
    arguments = command(
        place, "diverging", "trainer.devices=2", "model.tensor_model_parallel_size=2", "trainer.dpo.max_epochs=2",
        "trainer.dpo.save_interval=0", "trainer.dpo.val_check_interval=0", "model.optim.lr=1e30",
        "model.optim.sched.name=constant", "model.optim.sched.warmup_ratio=0",
    )  # fmt: skip
    return minordpo(*arguments)


def test_a_step_that_is_not_finite_ends_the_run(place, diverging):
    assert diverging.returncode == 1, diverging.stderr[-3000:]
    expected = rf"error: step 2: loss, .*logps/chosen, .*not finite for 4 of 4 pairs: {place}/train\.jsonl:(\d+), "
    match = re.search(expected, diverging.stderr)
    assert match, diverging.stderr[-3000:]
    order = pairs_of_step(1, num_pairs=10, global_batch_size=4, seed=default_of("model.seed"))
    assert int(match[1]) == order[0] + 1
    assert "done: " not in diverging.stderr
    folder = place / "diverging"
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1]
    assert all(math.isfinite(value) for value in lines[0]["values"].values())
    assert not list((folder / "checkpoints").glob("*"))
    assert not list(folder.glob("*.nemo*"))


def test_status_reports_what_was_not_finite(place, diverging):
    status = minordpo("status", place / "diverging", timeout=60)
    assert status.returncode == 1
    assert re.search(r"\nfailed; step 2: loss, .* not finite for 4 of 4 pairs: .*/train\.jsonl:\d+, ", status.stdout)
    assert status.stdout.endswith("; the same command would fail again: change settings or inputs, in a new folder\n")


@pytest.mark.parametrize(
    ("rate", "max_steps", "reason"),
    [
        ("1e39", 1, r"after step 1: weights not finite: "),
        # these weights are finite, but their outputs overflow; noticed at the end, and at a checkpoint
        ("1e30", 1, r"after step 1: .*logps/chosen, .*not finite for 4 of 4 pairs: .*/train\.jsonl:\d+, "),
        ("1e30", 3, r"after step 1: .*logps/chosen, .*not finite for 4 of 4 pairs: .*/train\.jsonl:\d+, "),
    ],
)
def test_weights_spoilt_by_a_step_are_not_saved(place, reference, rate, max_steps, reason):
    name = f"spoiled_{rate}_{max_steps}"
    result = minordpo(
        *command(place, name, f"trainer.dpo.max_steps={max_steps}", f"model.optim.lr={rate}"),
        "model.data.data_prefix.validation=[]",
        "model.optim.sched.warmup_ratio=0",
        "trainer.dpo.save_interval=1",
    )
    assert result.returncode == 2, result.stderr[-3000:]
    assert re.search(rf"^error: {reason}", result.stderr, re.MULTILINE), result.stderr[-3000:]
    assert "Traceback" not in result.stderr
    assert not list((place / name).glob("checkpoints/*"))
    assert not list((place / name).glob("*.nemo*"))


def test_loggers_are_opened_before_the_reference_is_evaluated(place):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    arguments = command(
        place, "no_key", "exp_manager.create_wandb_logger=true", "+exp_manager.wandb_logger_kwargs.mode=online",
        f"model.dpo.reference_cache={place}/untouched",
    )  # fmt: skip
    result = minordpo(*arguments, env={**environment, "HOME": str(place)})  # without a .netrc
    assert result.returncode == 2, result.stderr[-3000:]
    reason = "exp_manager.create_wandb_logger: W&B cannot be opened: "
    assert f"error: {reason}" in result.stderr
    assert "WANDB_API_KEY" in result.stderr
    assert not (place / "untouched").exists()
    status = minordpo("status", place / "no_key", timeout=60).stdout
    assert f"during set-up, failed: rank 0 on {socket.gethostname()}: UserError: {reason}" in status
    assert "the same command would fail again" in status.splitlines()[-1]


def test_adapters_are_trained_and_written(place, run):
    result = minordpo(
        *command(place, "lora", "model.peft.peft_scheme=lora", "trainer.dpo.max_steps=2", "model.optim.lr=1e-2")
    )
    assert result.returncode == 0, result.stderr[-3000:]
    lines = [json.loads(line)["values"] for line in (place / "lora/metrics.jsonl").read_text().splitlines()]
    assert lines[0]["rewards/margin"] == 0.0
    assert lines[1]["rewards/margin"] != 0.0
    assert (place / "lora/model.nemo").stat().st_size < (place / "run/model.nemo").stat().st_size / 4


def test_the_exported_model_scores_what_validation_reported(place, run):
    """`minordpo score` with transformers, against the last validation at TP=2, in packed rows."""
    _, result = run
    assert result.returncode == 0, result.stderr[-3000:]
    lines = [json.loads(line) for line in (place / "run/metrics.jsonl").read_text().splitlines()]
    *_, before, last = [line["values"] for line in lines if line["split"] == "validation"]
    export_hf(place / "run", place / "exported")
    scored = minordpo("score", place / "exported", place / "train.jsonl", place / "scores", "--reference", place / "hf")
    assert scored.returncode == 0, scored.stderr
    found = json.loads((place / "scores/pair_score.json").read_text())["metrics"]
    names = sorted(found.keys() & last.keys())
    assert {"logps/chosen", "logps/accuracy", "rewards/chosen", "rewards/margin", "deviation/chosen"} <= set(names)
    assert {name: found[name] for name in names} == pytest.approx({name: last[name] for name in names}, abs=1e-4)
    # the validation before that would be noticed
    assert abs(found["rewards/margin"] - before["rewards/margin"]) > 1e-3


def test_a_run_shows_its_steps_and_leaves_all_its_files(place, run):
    _, result = run
    assert result.returncode == 0, result.stderr[-3000:]
    assert "step 6: loss" in result.stderr
    assert "validation after step 2" in result.stderr
    folder = place / "run"
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["split"] == "train"] == [1, 2, 3, 4, 5, 6]
    assert [line["step"] for line in lines if line["split"] == "validation"] == [2, 4, 6]
    assert lines[0]["values"]["step_s"] > 0
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == ["step_000003", "step_000006"]
    assert list((folder / "tensorboard").glob("events.*"))
    assert (folder / "model.nemo").exists()
    files = {path.name: path.read_bytes() for path in (place / "base.tokenizer").iterdir()}
    assert {path.name: path.read_bytes() for path in (folder / "model.tokenizer").iterdir()} == files
    assert {"config.json", "generation_config.json", "tokenizer.json"} <= files.keys()
    assert "preference_loss: dpop" in (folder / "config.yaml").read_text()


def test_repeating_the_command_reports_a_complete_run(place, run):
    before = (place / "run/model.nemo").stat().st_mtime_ns
    result = minordpo(*run[0], timeout=60)
    assert result.returncode == 0, result.stderr
    assert "this run is complete" in result.stderr
    assert (place / "run/model.nemo").stat().st_mtime_ns == before


def test_another_experiment_cannot_resume_there(place, run):
    result = minordpo(*run[0], "model.dpo.ref_policy_kl_penalty=0.2", timeout=60)
    assert result.returncode == 2
    assert "model.dpo.ref_policy_kl_penalty: 0.1 there, 0.2 now" in result.stderr


def test_the_trained_model_becomes_a_hugging_face_folder(place, run):
    """model.nemo and the last checkpoint, written at TP=2, give the same tensors, which differ from the base's."""
    export_hf(place / "run", place / "hf_from_run")
    export_hf(place / "run/checkpoints/step_000006", place / "hf_from_checkpoint")
    from_run, from_checkpoint, base = (
        load_file(place / name / "model.safetensors") for name in ("hf_from_run", "hf_from_checkpoint", "hf")
    )
    assert from_run.keys() == from_checkpoint.keys() == base.keys()
    assert all(torch.equal(from_run[key], from_checkpoint[key]) for key in base)
    card = ModelCard.load(place / "hf_from_run/README.md")
    assert card.data.tags == ["dpo", "dpop", "nemo-minordpo"]
    lines = [json.loads(line) for line in (place / "run/metrics.jsonl").read_text().splitlines()]
    last = {line["split"]: line["values"]["loss"] for line in lines}
    assert f"| `loss`, nats | {last['train']:.4g} | {last['validation']:.4g} |" in card.text
    changed = [key for key in base if not torch.equal(base[key], from_run[key])]
    assert len(changed) == len(base)
    assert all((from_run[key] - base[key]).abs().max() < 0.05 for key in base)


OWN_LOSS = """
def by_length(pairs, options):
    return pairs.chosen_num_tokens - pairs.log_ratio_margin

by_length.needs_reference = False
"""


@pytest.fixture(scope="module")
def own_loss(place):
    """A run on two ranks with a user-defined loss from a file in the current folder; it needs no reference."""
    (place / "own_losses.py").write_text(OWN_LOSS)
    arguments = command(
        place, "own/run", "trainer.devices=2", "model.tensor_model_parallel_size=2", "trainer.dpo.max_steps=2",
        "trainer.dpo.val_check_interval=1", "model.dpo.preference_loss=own_losses:by_length",
    )  # fmt: skip
    return arguments, minordpo(*arguments, cwd=place)


def test_a_user_defined_loss_with_lengths_and_no_reference(place, own_loss):
    _, result = own_loss
    folder = place / "own/run"
    assert result.returncode == 0, result.stderr[-3000:]
    assert not (place / "own/reference_cache").exists()
    arrays = load_arrays(folder / "data/validation")
    num_tokens = arrays.sequence_lengths[0] - arrays.prompt_lengths
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["split"] for line in lines] == ["train", "validation"] * 2
    for values in (line["values"] for line in lines):
        assert values["rewards/chosen"] == values["logps/chosen"] < 0
        assert values["rewards/rejected"] == values["logps/rejected"] < 0
        assert values.get("reference_noise", 0.0) == 0.0
    for values in (line["values"] for line in lines if line["split"] == "validation"):
        assert values["loss"] == pytest.approx(num_tokens.mean() - values["rewards/margin"], rel=1e-12)
    assert lines[3]["values"]["loss"] < lines[1]["values"]["loss"]  # training reduces it
    assert read_run(folder).loss == "own_losses:by_length"


def test_a_changed_loss_file_is_another_run(place, own_loss):
    (place / "own_losses.py").write_text(OWN_LOSS.replace("pairs.chosen_num_tokens -", "2 * pairs.chosen_num_tokens -"))
    result = minordpo(*own_loss[0], cwd=place, timeout=60)
    assert result.returncode == 2
    assert "sha256 of loss: " in result.stderr


def last_validation(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line["values"] for line in lines if line["split"] == "validation"][-1]


def test_another_model_as_the_reference(place, run):
    """A run that starts from a trained model and barely moves has that model's rewards against the first reference."""
    trained, first = place / "run/model.nemo", place / "base.nemo"
    still = ["model.optim.lr=1e-12", "trainer.dpo.max_steps=1", "trainer.dpo.save_nemo=false"]
    start = f"pretrained_checkpoint.restore_from_path={trained}"
    same = minordpo(*command(place, "same", *still, start))
    assert same.returncode == 0, same.stderr[-3000:]
    assert abs(last_validation(place / "same")["rewards/chosen"]) < 1e-4
    other = minordpo(*command(place, "other", *still, start, f"pretrained_checkpoint.reference_from_path={first}"))
    assert other.returncode == 0, other.stderr[-3000:]
    found, expected = last_validation(place / "other"), last_validation(place / "run")
    assert abs(expected["rewards/chosen"]) > 1
    for name in ("rewards/chosen", "rewards/rejected", "rewards/margin", "logps/chosen"):
        assert found[name] == pytest.approx(expected[name], abs=1e-4)
    step = json.loads((place / "other/metrics.jsonl").read_text().splitlines()[0])["values"]
    assert abs(step["rewards/chosen"]) > 1  # the first step too, which otherwise compares the policy with itself
    assert "reference_noise" not in step


def test_another_reference_must_be_cached_first(place, run):
    """`minordpo reference` with the same settings evaluates it, with its weights and not those of the start."""
    cache = f"model.dpo.reference_cache={place / 'other_cache'}"
    arguments = command(
        place, "uncached", "model.optim.lr=1e-12", "trainer.dpo.max_steps=1", "trainer.dpo.save_nemo=false", cache,
        f"pretrained_checkpoint.restore_from_path={place / 'run/model.nemo'}",
        f"pretrained_checkpoint.reference_from_path={place / 'base.nemo'}",
    )  # fmt: skip
    missing = minordpo(*arguments)
    assert missing.returncode != 0
    assert "run `minordpo reference` with the same settings first" in missing.stderr
    assert minordpo("reference", *arguments[1:]).returncode == 0
    done = minordpo(*arguments)
    assert done.returncode == 0, done.stderr[-3000:]
    expected = last_validation(place / "run")["rewards/chosen"]
    assert last_validation(place / "uncached")["rewards/chosen"] == pytest.approx(expected, abs=1e-4)
