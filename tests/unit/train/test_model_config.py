import tarfile

import pytest
from omegaconf import OmegaConf

from nemo_minordpo.config import compose, load
from nemo_minordpo.train.model_config import build_model_config, read_checkpoint_config

CHECKPOINT = {
    "num_layers": 4, "num_attention_heads": 4, "num_query_groups": 2, "ffn_hidden_size": 128, "hidden_size": 64,
    "override_vocab_size": 512, "encoder_seq_length": 512, "hidden_dropout": 0.0, "transformer_engine": True,
    "fp8": False, "bias_activation_fusion": True, "target": "x", "nemo_version": "2.1.0", "optim": {"name": "adam"},
    "tensor_model_parallel_size": 1, "tokenizer": {"library": "huggingface", "type": "there", "use_fast": True},
}  # fmt: skip


def build(*overrides, cuda=False, te=False, checkpoint=None):
    config = load(
        compose(
            [
                "pretrained_checkpoint.restore_from_path=base.nemo", "model.data.data_prefix.train=[train.jsonl]",
                "exp_manager.explicit_log_dir=run", "model.dpo.ref_policy_kl_penalty=0.1", *overrides,
            ]
        ),
        loss_names=("minordpo",),
    )  # fmt: skip
    return build_model_config(config, OmegaConf.create(checkpoint or CHECKPOINT), cuda=cuda, te=te)


def test_what_a_machine_without_a_gpu_cannot_do_is_off():
    model = build()
    assert model.transformer_engine is False
    assert model.bias_activation_fusion is False
    assert model.use_cpu_initialization is True
    on_gpu = build(cuda=True, te=True)
    assert on_gpu.transformer_engine is True
    assert on_gpu.bias_activation_fusion is True


def test_our_settings_win_and_the_checkpoints_stay():
    model = build("+model.hidden_dropout=0.25", "model.tensor_model_parallel_size=2", "trainer.devices=2")
    assert model.hidden_dropout == 0.25
    assert model.tensor_model_parallel_size == 2
    assert model.num_layers == 4
    assert model.optim.lr == 1e-6
    assert "sched" not in model.optim
    assert "target" not in model
    assert model.dpo.ref_policy_kl_penalty == 0.1


def test_one_key_of_a_nested_setting():
    assert build("+model.tokenizer.type=elsewhere").tokenizer == {
        "library": "huggingface",
        "type": "elsewhere",
        "use_fast": True,
    }


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["+model.hiden_dropout=0.1"], "model.hiden_dropout; did you mean 'hidden_dropout'"),
        (
            ["trainer.devices=4", "model.tensor_model_parallel_size=4"],
            "tensor_model_parallel_size=4 does not divide the model's num_query_groups=2; possible: 1, 2",
        ),
        (
            ["trainer.devices=3", "model.pipeline_model_parallel_size=3", "model.global_batch_size=3"],
            "pipeline_model_parallel_size=3 does not divide the model's num_layers=4; possible: 1, 2, 4",
        ),
        (["precision=bf16"], "needs a GPU"),
        (["trainer.accelerator=gpu"], "no CUDA device"),
        (["model.sequence_parallel=true"], "needs Transformer Engine"),
        (["+model.tokenizer.library=sentencepiece"], "huggingface expected"),
    ],
)
def test_what_cannot_work_is_refused(overrides, message):
    with pytest.raises(ValueError) as error:  # noqa: PT011
        build(*overrides)
    assert message in str(error.value)


def test_checkpoints_that_are_none(tmp_path):
    (tmp_path / "text.nemo").write_text("no tar")
    with tarfile.open(tmp_path / "empty.nemo", "w"):
        pass
    (tmp_path / "folder").mkdir()
    for name, message in (
        ("missing.nemo", "no such file or folder"),
        ("text.nemo", "is not a .nemo checkpoint"),
        ("empty.nemo", "holds no model_config.yaml"),
        ("folder", "has no model_config.yaml"),
    ):
        with pytest.raises(ValueError, match=message):
            read_checkpoint_config(tmp_path / name)


def test_checkpoint_as_file_and_as_folder(tmp_path):
    (tmp_path / "folder").mkdir()
    OmegaConf.save(OmegaConf.create(CHECKPOINT), tmp_path / "folder/model_config.yaml")
    with tarfile.open(tmp_path / "model.nemo", "w") as archive:
        archive.add(tmp_path / "folder/model_config.yaml", arcname="./model_config.yaml")
    for name in ("folder", "model.nemo"):
        assert read_checkpoint_config(tmp_path / name) == CHECKPOINT
