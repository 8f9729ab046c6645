"""Adapters to start from: described by their own files; contradicting settings are rejected."""

import tarfile

import pytest
import torch
from omegaconf import OmegaConf

from nemo_minordpo.convert.checkpoint import Chunk, StoredTensor, write_checkpoint
from nemo_minordpo.train.model.model_config import read_checkpoint_config
from nemo_minordpo.train.model.starting_adapters import in_words

from .test_model_config import CHECKPOINT, build

MODEL = {**CHECKPOINT, "activation": "fast-swiglu", "rotary_base": 10000.0}
# of 4 layers, 4 heads of 16 in 2 groups, hidden size 64, feed-forward size 128: (inputs, outputs)
SIZES = {
    "self_attention.adapter_layer.lora_kqv_adapter": (64, 64 + 2 * 32),
    "self_attention.adapter_layer.lora_dense_attention_adapter": (64, 64),
    "mlp.adapter_layer.lora_hto4h_adapter": (64, 2 * 128),
    "mlp.adapter_layer.lora_4htoh_adapter": (128, 64),
}
LORA = {"target_modules": ["all"], "adapter_dim": 3, "alpha": 7.5, "adapter_dropout": 0.1}
PATH = "model.peft.restore_from_path"


def shapes(*places, rank=3, layers=4):
    named = {}
    for place in places:
        inputs, outputs = SIZES[place]
        named[f"decoder.layers.{place}.linear_in.weight"] = (layers, rank, inputs)
        named[f"decoder.layers.{place}.linear_out.weight"] = (layers, outputs, rank)
    return named


def write(folder, tensors=None, *, lora=LORA, model=MODEL, scheme="lora"):
    """An unpacked `.nemo` with tensors of zeros."""
    stored = [
        StoredTensor(
            name, shape, torch.float32, [Chunk((0,) * len(shape), shape, lambda shape=shape: torch.zeros(shape))]
        )
        for name, shape in (shapes(*SIZES) if tensors is None else tensors).items()
    ]
    write_checkpoint(folder / "model_weights", stored, [])
    OmegaConf.save(
        OmegaConf.create({**model, "peft": {"peft_scheme": scheme, "lora_tuning": lora}}), folder / "model_config.yaml"
    )
    return folder


def start(path, *overrides, checkpoint=MODEL):
    return build("model.peft.peft_scheme=lora", f"{PATH}={path}", *overrides, checkpoint=checkpoint)


def refused(path, *overrides, checkpoint=MODEL):
    with pytest.raises(ValueError) as error:  # noqa: PT011
        start(path, *overrides, checkpoint=checkpoint)
    return str(error.value)


def test_adapters_are_described_by_their_own_config(tmp_path):
    qkv, _, up, _ = SIZES
    model = start(write(tmp_path / "adapters", shapes(qkv, up)))
    lora = model.peft.lora_tuning
    assert (lora.adapter_dim, lora.alpha, lora.adapter_dropout) == (3, 7.5, 0.1)
    assert lora.target_modules == ["attention_qkv", "mlp_fc1"]
    words = in_words(model, tmp_path)
    assert "rank 3, alpha 7.5, dropout 0.1, on attention_qkv, mlp_fc1)" in words
    assert words.endswith("the reference is the model with these adapters")
    # control: new adapters
    assert build("model.peft.peft_scheme=lora").peft.lora_tuning.adapter_dim == 32


def test_alpha_defaults_to_the_rank(tmp_path):
    model = start(write(tmp_path / "adapters", lora={**LORA, "alpha": None}))
    assert model.peft.lora_tuning.alpha == 3


def test_adapters_can_be_a_file(tmp_path):
    write(tmp_path / "adapters")
    for mode in ("w", "w:gz"):
        with tarfile.open(tmp_path / "adapters.nemo", mode) as archive:
            archive.add(tmp_path / "adapters", ".")
        assert start(tmp_path / "adapters.nemo").peft.lora_tuning.alpha == 7.5


def test_settings_must_agree_with_the_adapters(tmp_path):
    path = write(tmp_path / "adapters", lora={**LORA, "alpha": 6})
    same = ["model.peft.lora_tuning.target_modules=[mlp,attention]", "model.peft.lora_tuning.adapter_dim=3"]
    assert start(path, *same, "model.peft.lora_tuning.alpha=6").peft.lora_tuning.alpha == 6
    for setting, theirs in (
        ("alpha=3", "6"),
        ("adapter_dim=32", "3"),  # the default of new adapters
        ("target_modules=[attention]", "['attention_qkv', 'attention_dense', 'mlp_fc1', 'mlp_fc2']"),
    ):
        message = refused(path, f"model.peft.lora_tuning.{setting}")
        assert message.startswith(f"model.peft.lora_tuning.{setting.split('=')[0]}=")
        assert message.endswith(f"{PATH}={path} have {theirs}: leave it out")
    # dropout is the run's own
    assert start(path, "model.peft.lora_tuning.adapter_dropout=0").peft.lora_tuning.adapter_dropout == 0


@pytest.mark.parametrize(
    ("tensors", "other", "expected"),
    [
        (shapes(*SIZES, layers=2), {}, "(2, 3, 64), but adapters of rank 3 for this model have (4, 3, 64)"),
        (shapes(*SIZES, rank=4), {}, "(4, 4, 64), but adapters of rank 3 for this model have (4, 3, 64)"),
        (None, {"num_layers": 2}, "num_layers 2 (here 4)"),
        (None, {"rotary_base": 1e6}, "rotary_base 1000000.0 (here 10000.0)"),
        ({**shapes(*SIZES), "decoder.layers.x.adapter_layer.y.weight": (4, 3)}, {}, "only plain LoRA is supported"),
    ],
    ids=["layers", "rank", "config", "same shapes", "kind"],
)
def test_adapters_of_another_model_are_rejected(tmp_path, tensors, other, expected):
    assert expected in refused(write(tmp_path / "adapters", tensors, model={**MODEL, **other}))


@pytest.mark.parametrize(
    ("lora", "expected"),
    [
        ({**LORA, "variant": "canonical"}, "peft.lora_tuning.variant='canonical': only plain LoRA is supported"),
        ({**LORA, "weight_tying": True}, "peft.lora_tuning.weight_tying=True"),
        ({**LORA, "layer_selection": [1]}, "peft.lora_tuning.layer_selection=[1]"),
        ({**LORA, "target_modules": ["conv"]}, "names conv"),
        ({**LORA, "adapter_dim": None}, "adapter_dim=None"),
        (None, "no peft.lora_tuning section, which has the adapters' scale"),
    ],
)
def test_anything_but_plain_lora_is_rejected(tmp_path, lora, expected):
    assert expected in refused(write(tmp_path / "adapters", lora=lora))


def test_one_file_per_rank_requires_the_same_layout(tmp_path):
    two = {"tensor_model_parallel_size": 2, "pipeline_model_parallel_size": 1}
    path = write(tmp_path / "adapters", model={**MODEL, **two})
    (path / "model_weights/.metadata").unlink()
    for rank in range(2):
        (path / f"mp_rank_{rank:02}").mkdir()
        torch.save({}, path / f"mp_rank_{rank:02}/model_weights.ckpt")
    at_two = ["model.tensor_model_parallel_size=2", "trainer.devices=2"]
    assert len(start(path, *at_two).peft.lora_tuning.target_modules) == 4
    message = refused(path)
    assert "contains one file per rank, for model.tensor_model_parallel_size=2: set that" in message
    assert f"minordpo export-hf {path} peft --adapters peft" in message


def test_files_without_adapters_are_rejected(tmp_path):
    whole = {"embedding.word_embeddings.weight": (8, 4)}
    assert "contains no adapters" in refused(write(tmp_path / "base", whole, scheme="none", lora=None))
    run = write(tmp_path / "run")
    (run / "checkpoints").mkdir()
    assert f"{run} is a run folder: give the model in it, {run}/model.nemo" in refused(run)
    (tmp_path / "peft").mkdir()
    (tmp_path / "peft/adapter_config.json").write_text("{}")
    assert f"is a PEFT folder; convert it to a .nemo first: minordpo import-hf {tmp_path}/peft" in refused(
        tmp_path / "peft"
    )
    assert f"{PATH}={tmp_path}/nothing: no such file or folder" in refused(tmp_path / "nothing")
    damaged = write(tmp_path / "damaged")
    (damaged / "model_weights/.metadata").write_bytes(b"\x80\x04")
    assert "model_weights/.metadata is damaged" in refused(damaged)


def test_adapters_are_not_a_model_to_start_from(tmp_path):
    whole = {"embedding.word_embeddings.weight": (8, 4)}
    assert read_checkpoint_config(write(tmp_path / "base", whole, scheme="none", lora=None)).num_layers == 4
    with pytest.raises(
        ValueError, match=r"contains only adapters: .* and the adapters in model\.peft\.restore_from_path"
    ):
        read_checkpoint_config(write(tmp_path / "adapters"))
    with pytest.raises(ValueError, match="has adapters in addition to its weights: merge them with minordpo export-hf"):
        read_checkpoint_config(write(tmp_path / "both", {**whole, **shapes(*SIZES)}))
    by_rank = write(tmp_path / "by_rank")
    (by_rank / "model_weights/.metadata").unlink()
    torch.save({}, by_rank / "model_weights.ckpt")
    with pytest.raises(ValueError, match="contains only adapters"):
        read_checkpoint_config(by_rank)
