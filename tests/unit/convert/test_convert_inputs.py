"""What import-hf reads from a folder: files, types and tokenizer; and its notes about them."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_hf import config_of, write_hf

from nemo_minordpo.convert import tokenizers
from nemo_minordpo.convert.facts import facts_from_config
from nemo_minordpo.convert.hf_folder import HfWeights
from nemo_minordpo.convert.hf_to_nemo import import_hf
from nemo_minordpo.convert.nemo_to_hf import export_hf
from nemo_minordpo.convert.tokenizers import check_tokenizer
from nemo_minordpo.errors import UserError
from nemo_minordpo.hugging_face import load_causal_lm

K_PROJ, NORM = "model.layers.1.self_attn.k_proj.weight", "model.norm.weight"


@pytest.fixture
def hf(tmp_path: Path) -> Path:
    return write_hf(tmp_path / "hf", "llama", num_hidden_layers=2)


def write_index(folder: Path, places: dict[str, str]) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))


def test_one_file_comes_before_shards(hf: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tensors = load_file(hf / "model.safetensors")
    save_file({name: tensor * 2 for name, tensor in tensors.items()}, hf / "one.safetensors", {"format": "pt"})
    write_index(hf, dict.fromkeys(tensors, "one.safetensors"))
    manifest = import_hf(hf, tmp_path / "base.nemo")
    assert (
        f"{hf}: reading weights from model.safetensors, like transformers, not from "
        "model.safetensors.index.json, one.safetensors\n"
    ) in capsys.readouterr().err
    assert set(manifest.inputs) == {str(hf / "config.json"), str(hf / "model.safetensors")}
    export_hf(tmp_path / "base.nemo", tmp_path / "back")
    assert torch.equal(load_file(tmp_path / "back" / "model.safetensors")[K_PROJ], tensors[K_PROJ])


def test_all_files_of_an_index_are_inputs(hf: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tensors = load_file(hf / "model.safetensors")
    (hf / "model.safetensors").rename(hf / "one.safetensors")
    write_index(hf, dict.fromkeys(tensors, "one.safetensors"))
    manifest = import_hf(hf, tmp_path / "base.nemo")
    assert "reading weights from" not in capsys.readouterr().err
    names = ("config.json", "model.safetensors.index.json", "one.safetensors")
    assert set(manifest.inputs) == {str(hf / name) for name in names}


def test_of_a_tensor_in_two_shards_the_later_one_counts(hf: Path) -> None:
    """As in transformers, whichever shard the index names."""
    tensors = load_file(hf / "model.safetensors")
    (hf / "model.safetensors").rename(hf / "a.safetensors")
    save_file({K_PROJ: tensors[K_PROJ] * 2, NORM: tensors[NORM] * 2}, hf / "b.safetensors", {"format": "pt"})
    write_index(hf, {**dict.fromkeys(tensors, "a.safetensors"), NORM: "b.safetensors"})
    weights = HfWeights(hf, facts_from_config(config_of("llama", num_hidden_layers=2), where="config.json"))
    loaded = load_causal_lm(hf).state_dict()
    for name in (K_PROJ, NORM):
        assert torch.equal(weights.read(name), tensors[name] * 2)
        assert torch.equal(weights.read(name), loaded[name])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_type_for_all_takes_tensors_of_several(hf: Path, tmp_path: Path, dtype: str) -> None:
    tensors = load_file(hf / "model.safetensors")
    mixed = {name: t if name == K_PROJ else t.bfloat16() for name, t in tensors.items()}
    save_file(mixed, hf / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"differ in type .*--dtype float32 .*--dtype bfloat16 rounds"):
        import_hf(hf, tmp_path / "base.nemo")
    import_hf(hf, tmp_path / "base.nemo", dtype=dtype)
    export_hf(tmp_path / "base.nemo", tmp_path / "back")
    back = load_file(tmp_path / "back" / "model.safetensors")
    assert all(torch.equal(back[name], tensor.to(getattr(torch, dtype))) for name, tensor in mixed.items())


def test_norms_of_another_type_stay_as_they_are(hf: Path, tmp_path: Path) -> None:
    tensors = load_file(hf / "model.safetensors")
    mixed = {name: t if "norm" in name else t.bfloat16() for name, t in tensors.items()}
    save_file(mixed, hf / "model.safetensors", {"format": "pt"})
    import_hf(hf, tmp_path / "base.nemo")
    export_hf(tmp_path / "base.nemo", tmp_path / "back")
    back = load_file(tmp_path / "back" / "model.safetensors")
    assert all(back[name].dtype == mixed[name].dtype and torch.equal(back[name], mixed[name]) for name in mixed)


def change_tokenizer(folder: Path, **changes: Any) -> None:
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def test_notes_about_a_tokenizer(hf: Path) -> None:
    assert check_tokenizer(hf, vocab_size=3) == []
    (beyond,) = check_tokenizer(hf, vocab_size=1)
    assert beyond == (
        f"{hf}: the tokenizer has 2 tokens beyond the model's 1, first '<unk>' (id 1); "
        "training rejects pairs that contain one"
    )
    change_tokenizer(hf, chat_template="another")
    (template,) = check_tokenizer(hf, vocab_size=3)
    assert template == f"{hf}: using chat_template.jinja; tokenizer_config.json has a different chat template"
    change_tokenizer(hf, chat_template=(hf / "chat_template.jinja").read_text())
    assert check_tokenizer(hf, vocab_size=3) == []


def test_a_process_that_has_no_transformers_asks_another_one(hf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = tokenizers.tokenizer_notes(hf, 1)
    monkeypatch.delitem(sys.modules, "transformers.models.auto.tokenization_auto")
    monkeypatch.setattr(tokenizers, "load_tokenizer", None)  # not called
    assert check_tokenizer(hf, vocab_size=1) == here
    change_tokenizer(hf, tokenizer_class="MistralCommonBackend")
    with pytest.raises(UserError, match="MistralCommonBackend"):
        check_tokenizer(hf, vocab_size=1)
