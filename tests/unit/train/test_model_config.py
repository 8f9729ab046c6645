import json
import tarfile

import pytest
from omegaconf import OmegaConf

from nemo_minordpo.config import compose, load
from nemo_minordpo.core.flops import ModelSize
from nemo_minordpo.train.model.hf_config import read_hf_config
from nemo_minordpo.train.model.model_config import (
    build_model_config,
    model_size,
    num_rows_multiple_of,
    read_checkpoint_config,
)

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
        )
    )  # fmt: skip
    return build_model_config(config, OmegaConf.create(checkpoint or CHECKPOINT), cuda=cuda, te=te)


def test_kernels_that_need_a_gpu_are_off_without_one():
    model = build()
    assert model.transformer_engine is False
    assert model.bias_activation_fusion is False
    assert build(checkpoint={**CHECKPOINT, "activation": "fast-swiglu"}).bias_activation_fusion is True  # ours
    assert model.use_cpu_initialization is True
    on_gpu = build(cuda=True, te=True)
    assert on_gpu.transformer_engine is True
    assert on_gpu.bias_activation_fusion is True


def test_our_settings_override_the_checkpoints():
    model = build("+model.hidden_dropout=0.25", "model.tensor_model_parallel_size=2", "trainer.devices=2")
    assert model.hidden_dropout == 0.25
    assert model.tensor_model_parallel_size == 2
    assert model.num_layers == 4
    assert model.optim.lr == 1e-6
    assert "sched" not in model.optim
    assert "target" not in model
    assert model.dpo.ref_policy_kl_penalty == 0.1


def test_a_single_key_of_a_nested_setting_can_be_changed():
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
            "tensor_model_parallel_size=4 does not divide the model's num_query_groups=2\n"
            "nearest layouts of 4 ranks that work: model.tensor_model_parallel_size=2 "
            "model.pipeline_model_parallel_size=1 (DP=2)",
        ),
        (
            ["trainer.devices=3", "model.pipeline_model_parallel_size=3", "model.global_batch_size=3"],
            "pipeline_model_parallel_size=3 does not divide the model's num_layers=4\n"
            "nearest layouts of 3 ranks that work: model.tensor_model_parallel_size=1 "
            "model.pipeline_model_parallel_size=1 (DP=3)",
        ),
        (["model.tensor_model_parallel_size=2"], "1 ranks (trainer.num_nodes=1 x trainer.devices=1) cannot be divided"),
        (["precision=fp8_hybrid"], "model.fp8=true (precision=fp8_hybrid) needs a GPU; use precision=bf16 or fp32"),
        (["trainer.precision=16-mixed"], "trainer.precision=16-mixed needs a GPU; use precision=bf16 or fp32"),
        (
            ["trainer.precision=bf16-mixed"],
            "trainer.precision=bf16-mixed with model.megatron_amp_O2=false needs a GPU; use precision=bf16 or fp32",
        ),
        (["trainer.accelerator=gpu"], "no CUDA device"),
        (["+model.tokenizer.library=sentencepiece"], "huggingface expected"),
        (["model.activations_checkpoint_granularity=some"], "granularity=some: null, selective or full expected"),
        (["model.activations_checkpoint_granularity=full"], "granularity=full also needs a method and a number"),
        (
            ["model.activations_checkpoint_granularity=full", "model.activations_checkpoint_method=uniform"],
            "granularity=full also needs a method and a number",
        ),
    ],
)
def test_impossible_settings_are_rejected(overrides, message):
    with pytest.raises(ValueError) as error:  # noqa: PT011
        build(*overrides)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"context_parallel_size": 2}, "model.context_parallel_size > 1: a row of packed pairs cannot be split"),
        (
            {"virtual_pipeline_model_parallel_size": 2},
            "model.virtual_pipeline_model_parallel_size=2: interleaved stages are supported by host=bridge only",
        ),
        ({"position_embedding_type": "alibi"}, "model.position_embedding_type=alibi: positions restart within"),
        ({"position_embedding_type": "relative"}, "model.position_embedding_type=relative: positions restart within"),
        ({"window_size": [64, 0]}, "is shorter than model.data.seq_length=1024; set model.data.seq_length=64"),
        ({"enable_cuda_graph": True}, "model.enable_cuda_graph: rows of packed pairs differ"),
        ({"num_moe_experts": 8}, "model.num_moe_experts: mixtures of experts are trained by host=bridge only"),
    ],
)
@pytest.mark.parametrize("cuda", [True, False])
def test_settings_that_packed_pairs_rule_out_are_rejected(settings, message, cuda):
    with pytest.raises(ValueError) as error:  # noqa: PT011
        build(cuda=cuda, te=cuda, checkpoint={**CHECKPOINT, **settings})
    assert message in str(error.value)
    assert len(str(error.value).splitlines()) == 1


def test_bfloat16_on_cpus_has_main_weights_that_are_reduced_after_the_backward_pass():
    model = build("precision=bf16")
    assert (model.precision, model.megatron_amp_O2, model.async_grad_allreduce) == ("bf16-mixed", True, False)
    assert "async_grad_allreduce" not in build("precision=bf16", cuda=True, te=True)


def test_megatron_would_sum_frozen_gradients_of_query_and_key_norms():
    overrides = ["model.peft.peft_scheme=lora", "model.optim.name=mcore_distributed_optim"]
    normed = {**CHECKPOINT, "qk_layernorm": True}
    with pytest.raises(ValueError, match=r"model\.optim\.name=mcore_distributed_optim with model\.peft"):
        build(*overrides, checkpoint=normed)
    build(*overrides)
    build(overrides[0], checkpoint=normed)
    build(overrides[1], checkpoint=normed)


def test_all_impossible_settings_are_reported_at_once():
    wrong = {"context_parallel_size": 2, "num_moe_experts": 8, "position_embedding_type": "alibi"}
    with pytest.raises(ValueError, match="context_parallel_size") as error:
        build(checkpoint={**CHECKPOINT, **wrong})
    assert len(str(error.value).splitlines()) == 3


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"position_embedding_type": "rope", "context_parallel_size": 1},
        {"position_embedding_type": "learned_absolute"},
        {"virtual_pipeline_model_parallel_size": None, "num_moe_experts": None, "enable_cuda_graph": False},
        {"window_size": None, "attention_dropout": 0.0},
    ],
)
@pytest.mark.parametrize("cuda", [True, False])
def test_settings_that_work_with_packed_pairs(settings, cuda):
    build("trainer.devices=2", "model.tensor_model_parallel_size=2", "model.sequence_parallel=true",
          cuda=cuda, te=cuda, checkpoint={**CHECKPOINT, **settings})  # fmt: skip


def test_attention_dropout_is_rejected():
    dropout = {**CHECKPOINT, "attention_dropout": 0.1}
    with pytest.raises(ValueError, match=r"not supported for packed pairs; set \+model.attention_dropout=0"):
        build(checkpoint=dropout)
    assert build("+model.attention_dropout=0", checkpoint=dropout).attention_dropout == 0


@pytest.mark.parametrize(("seq_length", "fits"), [(63, True), (64, True), (65, False)])
def test_a_sliding_window_longer_than_every_pair_is_dropped(seq_length, fits):
    windowed = {**CHECKPOINT, "window_size": [64, 0]}
    if fits:
        assert build(f"model.data.seq_length={seq_length}", checkpoint=windowed).window_size is None
    else:
        with pytest.raises(ValueError, match="the sliding window of 64 tokens is shorter"):
            build(f"model.data.seq_length={seq_length}", checkpoint=windowed)


@pytest.mark.parametrize(
    ("nodes", "devices", "tensor_parallel", "pipeline_parallel", "pairs", "multiple"),
    [
        (1, 1, 1, 1, 5, 5),
        (1, 4, 1, 1, 5, 8),
        (1, 4, 2, 1, 5, 6),
        (2, 2, 1, 1, 5, 8),
        (1, 4, 2, 2, 5, 5),
        (1, 4, 1, 1, 8, 8),
    ],
)
def test_nemos_batch_size_is_a_multiple_of_the_data_parallel_size(
    nodes, devices, tensor_parallel, pipeline_parallel, pairs, multiple
):
    model = build(
        f"trainer.num_nodes={nodes}",
        f"trainer.devices={devices}",
        f"model.tensor_model_parallel_size={tensor_parallel}",
        f"model.pipeline_model_parallel_size={pipeline_parallel}",
        f"model.global_batch_size={pairs}",
    )
    assert model.global_batch_size == multiple
    assert model.micro_batch_size == 1


def test_files_that_are_not_checkpoints_are_rejected(tmp_path):
    (tmp_path / "text.nemo").write_text("no tar")
    with tarfile.open(tmp_path / "empty.nemo", "w"):
        pass
    (tmp_path / "folder").mkdir()
    (tmp_path / "torn").mkdir()
    OmegaConf.save(OmegaConf.create({**CHECKPOINT, "num_layers": "4x"}), tmp_path / "torn/model_config.yaml")
    for name, message in (
        ("missing.nemo", "no such file or folder"),
        ("text.nemo", "is not a .nemo checkpoint"),
        ("empty.nemo", "has no model_config.yaml"),
        ("folder", "has no model_config.yaml"),
        ("torn", "has no integer num_layers: is the file complete"),
    ):
        with pytest.raises(ValueError, match=message):
            read_checkpoint_config(tmp_path / name)


def test_a_checkpoint_can_be_a_file_or_a_folder(tmp_path):
    (tmp_path / "folder").mkdir()
    OmegaConf.save(OmegaConf.create(CHECKPOINT), tmp_path / "folder/model_config.yaml")
    with tarfile.open(tmp_path / "model.nemo", "w") as archive:
        archive.add(tmp_path / "folder/model_config.yaml", arcname="./model_config.yaml")
    for name in ("folder", "model.nemo"):
        assert read_checkpoint_config(tmp_path / name) == CHECKPOINT


@pytest.mark.parametrize("name", ["folder", "model.nemo"])
def test_the_tokenizer_moves_with_the_checkpoint(tmp_path, name):
    test_a_checkpoint_can_be_a_file_or_a_folder(tmp_path)
    moved = tmp_path / f"{name.removesuffix('.nemo')}.tokenizer"
    moved.mkdir()
    assert read_checkpoint_config(tmp_path / name).tokenizer.type == str(moved)
    assert build("+model.tokenizer.type=elsewhere", checkpoint=read_checkpoint_config(tmp_path / name)).tokenizer == {
        "library": "huggingface", "type": "elsewhere", "use_fast": True
    }  # fmt: skip


HF = {
    "num_hidden_layers": 4, "hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 512, "vocab_size": 403, "hidden_act": "silu",
    "model_type": "qwen3", "head_dim": 24,
}  # fmt: skip


@pytest.fixture
def hf(tmp_path):
    (tmp_path / "model.safetensors").write_text("")

    def write(**changes):
        (tmp_path / "config.json").write_text(json.dumps({**HF, **changes}))
        return tmp_path

    return write


def test_the_bridge_starts_from_a_hugging_face_folder(hf):
    read = read_hf_config(hf(), setting="setting")
    model = build("host=bridge", checkpoint=read)
    assert model_size(model, vocab_size=0) == ModelSize(
        num_layers=4, hidden_size=64, ffn_hidden_size=128, num_heads=4, num_query_groups=2, head_size=24,
        vocab_size=403, gated=True,
    )  # fmt: skip
    assert model.tokenizer.type == str(hf())
    other = read_hf_config(hf(head_dim=None, num_key_value_heads=None), setting="setting")
    assert (other.kv_channels, other.num_query_groups) == (16, 4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sliding_window": 32}, r"the sliding window of 32 tokens is shorter than model.data.seq_length=1024"),
        ({"attention_dropout": 0.1}, "attention_dropout: not supported"),
    ],
)
def test_what_the_bridge_does_not_support_is_refused(hf, changes, message):
    with pytest.raises(ValueError, match=message):
        build("host=bridge", checkpoint=read_hf_config(hf(**changes), setting="setting"))


MIXTURE = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 48}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([], "needs several pipeline stages"),
        (["model.pipeline_model_parallel_size=4", "trainer.devices=4"], r"num_layers=4 divisible by them times it"),
        (["model.pipeline_model_parallel_size=2", "trainer.devices=2", "trainer.dpo.watch.interval=1"],
         "answers are written one row at a time"),
    ],
)  # fmt: skip
def test_interleaved_stages_that_cannot_work(hf, overrides, message):
    checkpoint = read_hf_config(hf(), setting="setting")
    interleaved = ["host=bridge", "model.virtual_pipeline_model_parallel_size=2"]
    with pytest.raises(ValueError, match=message):
        build(*interleaved, *overrides, checkpoint=checkpoint)
    model = build(*interleaved, "model.pipeline_model_parallel_size=2", "trainer.devices=2", checkpoint=checkpoint)
    assert num_rows_multiple_of(model) == 2
    assert num_rows_multiple_of(build("host=bridge", checkpoint=checkpoint)) == 1


def test_the_size_of_a_mixture_of_experts(hf):
    size = model_size(build("host=bridge", checkpoint=read_hf_config(hf(**MIXTURE), setting="setting")), vocab_size=0)
    assert (size.num_experts, size.experts_per_token, size.ffn_hidden_size) == (8, 2, 48)
    local = {"num_local_experts": 4, "num_experts_per_tok": 1}
    size = model_size(build("host=bridge", checkpoint=read_hf_config(hf(**local), setting="setting")), vocab_size=0)
    assert (size.num_experts, size.experts_per_token, size.ffn_hidden_size) == (4, 1, 128)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.expert_model_parallel_size=3", "trainer.devices=6"], "=3 does not divide the model's 8 experts"),
        (["model.expert_model_parallel_size=4", "trainer.devices=2"], "=4 does not divide the 2 data-parallel ranks"),
        (["model.tensor_model_parallel_size=2", "trainer.devices=2"], "needs model.sequence_parallel=true"),
        (["model.peft.peft_scheme=lora"], "adapters of experts are not supported"),
        (["precision=fp8_hybrid"], "with a mixture of experts is not supported"),
        (["model.expert_model_parallel_size=2", "trainer.devices=2", "trainer.dpo.watch.interval=1"],
         "ranks that share experts would need answers of one length"),
    ],
)  # fmt: skip
def test_what_experts_do_not_support_is_refused(hf, overrides, message):
    checkpoint = read_hf_config(hf(**MIXTURE), setting="setting")
    with pytest.raises(ValueError, match=message):
        build("host=bridge", *overrides, checkpoint=checkpoint)
    build("host=bridge", checkpoint=checkpoint)


def test_experts_cannot_be_spread_where_there_are_none(hf):
    with pytest.raises(ValueError, match="this model has no experts"):
        build("host=bridge", "model.expert_model_parallel_size=2", "trainer.devices=2",
              checkpoint=read_hf_config(hf(), setting="setting"))  # fmt: skip


def test_fused_accumulation_on_the_bridge_needs_apex(hf):
    checkpoint = read_hf_config(hf(), setting="setting")
    overrides = ["host=bridge", "precision=bf16"]
    with pytest.raises(ValueError, match="with host=bridge needs Apex for the head"):
        build(*overrides, "fusions=te", cuda=True, te=True, checkpoint=checkpoint)
    build(*overrides, cuda=True, te=True, checkpoint=checkpoint)


def test_an_unused_sliding_window_is_none(hf):
    assert read_hf_config(hf(sliding_window=32, use_sliding_window=False), setting="setting").window_size is None


def test_optimizers_that_only_the_other_host_supports(hf):
    checkpoint, setting = read_hf_config(hf(), setting="setting"), "model.optim.name=fused_adam"
    with pytest.raises(ValueError, match=f"host=bridge does not support {setting} yet; host=aligner does"):
        build("host=bridge", setting, checkpoint=checkpoint, cuda=True, te=True)


def test_what_is_no_hugging_face_folder(tmp_path, hf):
    for path, message in (
        (
            tmp_path / "base.nemo",
            r"setting=.*base\.nemo: host=bridge starts from a Hugging Face folder; export this one",
        ),
        (tmp_path / "nowhere", "config.json does not exist"),
        (hf(hidden_size=None), "has no integer hidden_size"),
    ):
        with pytest.raises(ValueError, match=message):
            read_hf_config(path, setting="setting")
