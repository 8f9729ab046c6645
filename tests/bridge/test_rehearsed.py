"""host=bridge on the emulated GPU of tests/gpu/rehearsal, with Transformer Engine's own Python layers; FP8.

`make rehearse-bridge` runs this. One rank only: the emulation has one GPU.
"""

import math
from importlib.util import find_spec

import pytest

from tests.bridge.running import (
    ADAM,
    FAMILIES,
    LORA,
    SGD,
    metrics,
    needs_bridge,
    require_equal,
    require_same_bits,
    require_same_export,
    resume_from,
    train,
    write_inputs,
)
from tests.by_hand import trained
from tests.gpu.rehearsal import ACTIVE

pytestmark = [
    needs_bridge,
    pytest.mark.skipif(
        find_spec("transformer_engine") is None, reason="Transformer Engine is not installed: make rehearse-bridge"
    ),
]
FP8 = ["precision=fp8_hybrid", *ADAM]
WAYS = {"distributed optimizer": ["model.optim.name=mcore_distributed_optim"], "AdamW": [], "LoRA": LORA}


@pytest.fixture(autouse=True)
def emulated_gpu(monkeypatch):
    monkeypatch.setenv(ACTIVE, "1")  # of the processes that a test starts


@pytest.fixture(scope="session")
def workspace(tmp_path_factory):
    return write_inputs(tmp_path_factory.mktemp("rehearsed"))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_layers_of_transformer_engine_train_as_transformers(workspace, tmp_path, family):
    run = train(workspace, tmp_path / "run", *SGD, family=family)
    require_equal(run, workspace / family, trained(workspace / family, workspace / "train.jsonl", num_steps=6))
    require_same_export(run)


def test_fp8_follows_bfloat16(workspace, tmp_path):
    low, half = (
        train(workspace, tmp_path / name, *ADAM, f"precision={name}", "model.optim.name=mcore_distributed_optim")
        for name in ("fp8_hybrid", "bf16")
    )
    first, *later = metrics(low)
    # the reference was evaluated with the scales that the policy starts with
    assert first.values["rewards/chosen"] == 0.0
    assert first.values["loss"] == pytest.approx(math.log(2), abs=1e-12)
    for one, two in zip(metrics(low), metrics(half), strict=True):
        assert one.values["loss"] == pytest.approx(two.values["loss"], abs=0.1)
    assert any(one.values["loss"] != two.values["loss"] for one, two in zip(later, metrics(half)[1:], strict=True))


@pytest.mark.parametrize("way", WAYS)
def test_fp8_resumes_to_the_bit(workspace, tmp_path, way):
    overrides = [*FP8, *WAYS[way]]
    whole = train(workspace, tmp_path / "whole", *overrides)
    resumed = resume_from(whole, tmp_path / "resumed", step=2)
    train(workspace, resumed, *overrides)
    require_same_bits(whole, resumed)


def test_a_live_reference_in_fp8_is_the_cached_one(workspace, tmp_path):
    cached, live = (
        train(workspace, tmp_path / kind, *FP8, f"model.dpo.reference_log_probs={kind}") for kind in ("cached", "live")
    )
    assert metrics(live)[0].values["rewards/chosen"] == 0.0
    # the live reference follows the policy's scales, the cached one keeps those of the start
    for one, two in zip(metrics(cached), metrics(live), strict=True):
        assert one.values["loss"] == pytest.approx(two.values["loss"], abs=0.05)


def test_validation_in_fp8_does_not_affect_training(workspace, tmp_path):
    validation = [f"model.data.data_prefix.validation=[{workspace / 'validation.jsonl'}]"]
    without = train(workspace, tmp_path / "without", *FP8)
    often = train(workspace, tmp_path / "often", *FP8, *validation, "trainer.dpo.val_check_interval=1")
    assert [line.values["loss"] for line in metrics(often)] == [line.values["loss"] for line in metrics(without)]
    assert len(metrics(often, "validation")) == 6
