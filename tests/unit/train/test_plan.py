"""`minordpo plan`: the needs of a run, estimated from its settings."""

import pytest
from omegaconf import OmegaConf

from nemo_minordpo.config import compose, load
from nemo_minordpo.core.memory import GIB
from nemo_minordpo.train.plan import Device, main, make_plan

from .conftest import pair
from .test_model_config import CHECKPOINT


@pytest.fixture
def overrides(tmp_path, tokenizer, write):
    """Settings for a run on 50 pairs."""
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    (tmp_path / "base").mkdir()
    named = {"library": "huggingface", "type": str(tmp_path / "tokenizer")}
    sizes = {"share_embeddings_and_output_weights": False, "activation": "fast-swiglu"}
    OmegaConf.save(OmegaConf.create({**CHECKPOINT, **sizes, "tokenizer": named}), tmp_path / "base/model_config.yaml")
    pairs = write(*(pair(chosen=f"{n} and {n}", rejected=f"{n} or {n}") for n in range(50)))
    return [
        f"pretrained_checkpoint.restore_from_path={tmp_path}/base", f"model.data.data_prefix.train=[{pairs}]",
        f"exp_manager.explicit_log_dir={tmp_path}/my runs/run", "model.dpo.ref_policy_kl_penalty=0.1",
        "model.global_batch_size=8",
    ]  # fmt: skip


def plan(overrides, *more, elsewhere=True):
    return make_plan(load(compose([*overrides, *more])), elsewhere=elsewhere)


def run(overrides, *more, memory=1.5, tflops=1.0, launcher=False):
    main([*overrides, *more], device_memory_gib=memory, device_tflops=tflops, efficiency=0.5, launcher=launcher)


def test_steps_and_layout(overrides):
    made = plan(overrides, "trainer.devices=4", "model.tensor_model_parallel_size=2", "trainer.dpo.max_epochs=2")
    assert made.num_steps == 2 * 7  # 50 pairs, 8 per step
    assert (made.ranks, made.data_parallel) == (4, 2)
    assert made.work.pairs == 8
    assert plan(overrides, "trainer.dpo.max_steps=5").num_steps == 5


def test_operations_do_not_depend_on_the_layout(overrides):
    one_rank = plan(overrides)
    assert one_rank.flops == one_rank.size.training_flops(one_rank.work) > 0
    two_ranks = plan(overrides, "trainer.devices=2", "model.pipeline_model_parallel_size=2")
    assert two_ranks.flops == one_rank.flops
    frozen = plan(overrides, "model.peft.peft_scheme=lora")
    assert 0.6 < frozen.flops / one_rank.flops < 0.75


def test_a_batch_larger_than_the_sample_is_scaled(overrides):
    small, large = plan(overrides, "model.global_batch_size=50"), plan(overrides, "model.global_batch_size=500")
    assert large.work.pairs == 500
    assert large.flops == pytest.approx(10 * small.flops, rel=1e-3)


def test_seconds_per_step(overrides):
    made = plan(overrides)
    device = Device(memory=GIB, flops=2e9, efficiency=0.25)
    assert made.step_seconds(device) == pytest.approx(made.flops / 0.5e9)
    piped = plan(overrides, "trainer.devices=4", "model.pipeline_model_parallel_size=4")
    assert piped.layout.num_rows == 1
    assert piped.step_seconds(device) == pytest.approx(made.step_seconds(device))  # one row: stage after stage


def test_the_printed_plan(overrides, capsys):
    run(overrides)
    output = capsys.readouterr().out
    assert "1 nodes x 1 ranks: TP=1 x PP=1 x DP=1; 1 rows of" in output
    assert "TFLOP per step of 8 pairs" in output
    assert "for 7 steps" in output
    for name in (
        "weights",
        "gradients",
        "optimizer",
        "activations",
        "vocabulary",
        "head",
        "overhead",
        "total",
        "available",
    ):
        assert name in output


def test_output_for_the_launcher(overrides, tmp_path, capsys):
    run(overrides, "trainer.devices=2", launcher=True)
    assert capsys.readouterr().out == f"2\n{tmp_path}/my runs/run\n"
    assert not (tmp_path / "my runs").exists()  # nothing is written


@pytest.mark.parametrize("launcher", [False, True])
def test_too_large_for_the_device(overrides, launcher):
    with pytest.raises(
        ValueError, match=r"needs about \d\.\d GiB, but a device has 0.5 GiB; no layout of these ranks fits"
    ):
        run(overrides, memory=0.5, launcher=launcher)


def test_the_nearest_layouts_that_fit(overrides):
    whole = plan(overrides, "trainer.devices=4").memory.total / GIB
    split = plan(overrides, "trainer.devices=4", "model.tensor_model_parallel_size=2").memory.total / GIB
    with pytest.raises(ValueError, match=r"nearest layouts that fit: model\.tensor_model_parallel_size=2 ") as error:
        run(overrides, "trainer.devices=4", memory=(whole + split) / 2)
    assert "a device has" in str(error.value)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["model.tensor_model_parallel_size=3", "trainer.devices=3"], "nearest layouts of 3 ranks that work"),
        (["trainer.num_nodes=0"], "trainer.num_nodes=0 must be >= 1"),
        (["model.dpo.ref_policy_kl_penalt=1"], "ref_policy_kl_penalt"),
    ],
)
def test_settings_that_train_rejects_are_rejected(overrides, more, message):
    with pytest.raises(ValueError, match=message):
        run(overrides, *more)


def test_bfloat16_is_planned_for_gpus_unless_it_is_for_this_machine(overrides):
    assert plan(overrides, "precision=bf16").cuda
    assert not plan(overrides, "precision=bf16", elsewhere=False).cuda
    assert not plan(overrides, "precision=bf16", "trainer.accelerator=cpu").cuda
    assert plan(overrides, "precision=bf16", "trainer.accelerator=gpu", elsewhere=False).cuda
    assert plan(overrides, "precision=fp8_hybrid", elsewhere=False).cuda
    assert not plan(overrides).cuda


def test_a_new_gradient_of_the_vocabulary_on_cpus(overrides):
    """In float32 beside the sum; in bfloat16 also its float32 copy; adapters have no such gradient."""
    for more, expected in (([], 4), (["precision=bf16"], 6), (["model.peft.peft_scheme=lora"], 0)):
        made = plan(overrides, *more, elsewhere=False)
        assert made.memory.vocabulary == expected * made.size.vocab_size * made.size.hidden_size
        assert made.memory.total - made.memory.vocabulary > made.memory.weights
    assert plan(overrides, "precision=bf16").memory.vocabulary == 0


def test_bytes_of_a_weight(overrides):
    def states(*more):
        memory = plan(overrides, *more).memory
        return (memory.weights + memory.gradients + memory.optimizer) / memory.parameters

    assert states() == 16
    assert states("model.optim.name=sgd", "model.optim.betas=null") == 8
    assert states("precision=bf16", "model.megatron_amp_O2=true") == 18
    assert states("precision=bf16", "model.megatron_amp_O2=false") == 18  # autocast: float32 and a copy
    sharded = ["precision=bf16", "model.megatron_amp_O2=true", "model.optim.name=mcore_distributed_optim"]
    assert states(*sharded, "trainer.devices=4") == 2 + 4 + 12 / 4
