"""import-hf and export-hf end to end on tiny folders: every bit back, nothing overwritten, every fault named."""

import json
import shutil
import tarfile
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny_hf import TOKENIZER_FILES, config_of, tensors_of, write_hf
from torch import Tensor

from nemo_minordpo.convert import nemo_config as model_config
from nemo_minordpo.convert.checkpoint import Checkpoint
from nemo_minordpo.convert.facts import facts_from_config
from nemo_minordpo.convert.hf_folder import write_weights
from nemo_minordpo.convert.hf_to_nemo import import_hf
from nemo_minordpo.convert.nemo_to_hf import export_hf
from nemo_minordpo.records import Manifest

MODELS: dict[str, dict[str, Any]] = {
    "llama-gqa": {"model_type": "llama"},
    "llama-mha-tied": {"model_type": "llama", "num_key_value_heads": 6, "tie_word_embeddings": True},
    "llama-wide-heads": {"model_type": "llama", "head_dim": 8},
    "qwen2-gqa-tied": {"model_type": "qwen2", "tie_word_embeddings": True, "vocab_size": 128},
    "qwen15-mha": {"model_type": "qwen2", "num_key_value_heads": 6},
    "mistral-wide-heads": {"model_type": "mistral", "head_dim": 8, "sliding_window": 32},
    "qwen3-tied": {"model_type": "qwen3", "head_dim": 8, "tie_word_embeddings": True},
    "qwen3": {"model_type": "qwen3"},
}


def read_all(folder: Path) -> dict[str, Tensor]:
    return {name: tensor for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()}


def differing(a: dict[str, Tensor], b: dict[str, Tensor]) -> list[str]:
    return sorted(
        name
        for name in a.keys() | b.keys()
        if name not in a or name not in b or a[name].dtype != b[name].dtype or not torch.equal(a[name], b[name])
    )


def described(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.to("meta") for name, tensor in tensors.items()}


def unpack(nemo: Path, folder: Path) -> Path:
    with tarfile.open(nemo, "r:") as archive:  # uncompressed
        archive.extractall(folder)
    return folder


@pytest.fixture
def nemo(base: Path) -> Path:
    return base


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_every_bit_comes_back(tmp_path: Path, name: str, dtype: torch.dtype) -> None:
    hf = write_hf(tmp_path / "hf", dtype=dtype, torch_dtype=str(dtype).removeprefix("torch."), **MODELS[name])
    import_hf(hf, tmp_path / "base.nemo")
    manifest = export_hf(tmp_path / "base.nemo", tmp_path / "back")
    back = read_all(tmp_path / "back")
    assert differing(read_all(hf), back) == []
    assert manifest.counts["hf_tensors"] == len(back)
    assert manifest.counts["bytes"] == sum(tensor.nbytes for tensor in back.values())
    for file in ("config.json", *TOKENIZER_FILES):
        assert (tmp_path / "back" / file).read_bytes() == (hf / file).read_bytes()


def test_control_the_comparison_sees_a_swap_a_type_and_an_absence(hf: Path) -> None:
    tensors = read_all(hf)
    gate, up, norm = (f"model.layers.1.{n}.weight" for n in ("mlp.gate_proj", "mlp.up_proj", "input_layernorm"))
    assert differing(tensors, {**tensors, gate: tensors[up], up: tensors[gate]}) == [gate, up]
    assert differing(tensors, {**tensors, norm: tensors[norm].double()}) == [norm]
    assert differing(tensors, {n: t for n, t in tensors.items() if n != norm}) == [norm]


def test_content_of_the_nemo(hf: Path, nemo: Path, tmp_path: Path) -> None:
    """Read with torch alone and assembled by hand."""
    folder = unpack(nemo, tmp_path / "unpacked")
    tensors, checkpoint = read_all(hf), Checkpoint(folder / "model_weights")
    layer = "model.layers.2."
    q, k, v = (tensors[f"{layer}self_attn.{name}_proj.bias"] for name in "qkv")  # 6 heads, 2 groups, head size 4
    bias = torch.cat([q[:12], k[:4], v[:4], q[12:], k[4:], v[4:]])
    assert torch.equal(checkpoint.read("decoder.layers.self_attention.linear_qkv.bias", layer=2), bias)
    fc1 = checkpoint.read("decoder.layers.mlp.linear_fc1.weight", layer=2)
    assert torch.equal(fc1[:20], tensors[layer + "mlp.gate_proj.weight"])
    assert torch.equal(fc1[20:], tensors[layer + "mlp.up_proj.weight"])
    head = checkpoint.read("output_layer.weight")
    assert torch.equal(head[:131], tensors["lm_head.weight"])
    assert head.shape[0] == 256
    assert head[131:].abs().sum() == 0


def test_model_config_and_sidecars(hf: Path, nemo: Path, tmp_path: Path) -> None:
    config: Any = OmegaConf.load(unpack(nemo, tmp_path / "unpacked") / "model_config.yaml")
    assert config.override_vocab_size == 256
    assert config.unpadded_vocab_size == 131
    assert config.name == ""
    assert config.transformer_engine is True
    assert config.qkv_bias is True
    assert config.share_embeddings_and_output_weights is False
    assert config.rotary_base == 20000.0
    assert config.kv_channels == 4
    assert config.tokenizer.type == str(tmp_path / "base.tokenizer")
    assert Path(config.tokenizer.type).is_absolute()
    for file in ("config.json", *TOKENIZER_FILES):
        assert (tmp_path / "base.tokenizer" / file).read_bytes() == (hf / file).read_bytes()
    manifest = json.loads((tmp_path / "base.manifest.json").read_text())
    assert set(manifest["inputs"]) == {str(hf / "model.safetensors"), str(hf / "config.json")}
    assert manifest["counts"]["hf_tensors"] == 3 * 12 + 3


def test_an_exported_model_says_how_the_prompts_of_its_training_were_written(nemo: Path, tmp_path: Path) -> None:
    way = {"template": "chat", "system": None, "date": "2024-03-09", "template_options": {"enable_thinking": False}}
    assert export_hf(nemo, tmp_path / "untrained").prompts == []
    Manifest(stage="train", prompts=[way]).write(tmp_path / "run")
    shutil.copyfile(nemo, tmp_path / "run/model.nemo")
    shutil.copytree(tmp_path / "base.tokenizer", tmp_path / "run/model.tokenizer")
    export_hf(tmp_path / "run", tmp_path / "trained")
    assert Manifest.read(tmp_path / "trained").prompts == [way]


def test_types_can_be_changed_on_either_side(hf: Path, tmp_path: Path) -> None:
    import_hf(hf, tmp_path / "half.nemo", dtype="bfloat16")
    export_hf(tmp_path / "half.nemo", tmp_path / "half")
    wanted = {name: tensor.bfloat16() for name, tensor in read_all(hf).items()}
    assert differing(read_all(tmp_path / "half"), wanted) == []
    assert json.loads((tmp_path / "half" / "config.json").read_text()) == {
        **json.loads((hf / "config.json").read_text()),
        "torch_dtype": "bfloat16",
    }
    export_hf(tmp_path / "half.nemo", tmp_path / "float", dtype="float32")
    assert differing(read_all(tmp_path / "float"), {name: t.float() for name, t in wanted.items()}) == []
    for call in (
        lambda: import_hf(hf, tmp_path / "x.nemo", dtype="int8"),
        lambda: export_hf(tmp_path / "half.nemo", tmp_path / "x", dtype="fp16"),
    ):
        with pytest.raises(ValueError, match=r"unknown dtype '.*'; choose from float32, bfloat16, float16"):
            call()


def test_windows_and_norms_in_the_model_config(tmp_path: Path) -> None:
    """Training drops a window that hides nothing from its pairs; without its norms it would be a different model."""
    mistral, qwen3 = (facts_from_config(config_of(kind, sliding_window=32), where="x") for kind in ("mistral", "qwen3"))
    windowed, normed = (
        model_config.model_config(facts, tokenizer=tmp_path, dtype=torch.float32) for facts in (mistral, qwen3)
    )
    assert (windowed["window_size"], windowed["qk_layernorm"]) == ([32, 0], False)
    assert (normed["window_size"], normed["qk_layernorm"]) == (None, True)
    assert model_config.differences(mistral, {**windowed, "window_size": None}) == []
    assert model_config.differences(qwen3, normed) == []
    del normed["qk_layernorm"]
    assert model_config.differences(qwen3, normed) == ["qk_layernorm: False instead of True"]


def test_shards_are_read_and_written(hf: Path, tmp_path: Path) -> None:
    tensors = read_all(hf)
    shutil.copytree(hf, tmp_path / "sharded")
    (tmp_path / "sharded" / "model.safetensors").unlink()
    total = write_weights(tmp_path / "sharded", described(tensors), tensors.items(), max_shard_bytes=8000)
    files = sorted(path.name for path in (tmp_path / "sharded").glob("*.safetensors"))
    assert files[0] == f"model-00001-of-{len(files):05}.safetensors"
    assert len(files) > 3
    index = json.loads((tmp_path / "sharded" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == total == sum(tensor.nbytes for tensor in tensors.values())
    for name, file in index["weight_map"].items():
        assert name in load_file(tmp_path / "sharded" / file)
    sizes = [sum(t.nbytes for t in load_file(tmp_path / "sharded" / file).values()) for file in files]
    assert all(
        size <= 8000 or len(load_file(tmp_path / "sharded" / f)) == 1 for size, f in zip(sizes, files, strict=True)
    )
    import_hf(tmp_path / "sharded", tmp_path / "base.nemo")
    export_hf(tmp_path / "base.nemo", tmp_path / "back")
    assert differing(read_all(tmp_path / "back"), tensors) == []


@pytest.mark.parametrize("limit", [1, 60, 10**6], ids=["a tensor a file", "several", "one file"])
def test_files_are_those_of_safetensors_own_writer(tmp_path: Path, limit: int) -> None:
    """Types of several widths, sizes that are not multiples of them, slices, and tensors in any order."""
    table = torch.randn(7, 3)
    tensors = {
        "odd": torch.randn(3).bfloat16(), "wide": table, "slice": table[2:5], "column": table[:, 1],
        "half": torch.randn(5).half(), "empty": torch.zeros(0, 3), "b": torch.randn(2, 2),
    }  # fmt: skip
    backwards = reversed(list(tensors.items()))
    total = write_weights(tmp_path, described(tensors), backwards, max_shard_bytes=limit)
    assert total == sum(tensor.nbytes for tensor in tensors.values())
    files = sorted(tmp_path.glob("*.safetensors"))
    assert len(files) == {1: 7, 60: 4, 10**6: 1}[limit]
    found = {}
    for path in files:
        content = load_file(path)
        found |= content
        save_file(
            {name: tensor.contiguous() for name, tensor in content.items()}, tmp_path / "theirs", {"format": "pt"}
        )
        with safe_open(path, framework="pt") as ours, safe_open(tmp_path / "theirs", framework="pt") as theirs:
            assert ours.metadata() == theirs.metadata()
            assert sorted(ours.keys()) == sorted(theirs.keys())
        assert int.from_bytes(path.read_bytes()[:8], "little") % 8 == 0
        assert path.stat().st_mode == files[0].stat().st_mode
    assert differing(found, tensors) == []


def test_tensors_that_were_not_planned_are_refused(tmp_path: Path) -> None:
    wanted = described({"a": torch.zeros(4), "b": torch.zeros(2)})
    with pytest.raises(ValueError, match="b is planned, but never written"):
        write_weights(tmp_path, wanted, [("a", torch.zeros(4))])
    for wrong in (torch.zeros(5), torch.zeros(4).half(), torch.zeros(4, 1)):
        with pytest.raises(ValueError, match=r"a: read .*, but planned for"):
            write_weights(tmp_path, wanted, [("a", wrong)])


def test_one_tensor_is_in_memory_at_a_time(tmp_path: Path) -> None:
    """Whatever the shard size."""
    alive: list[weakref.ref[Tensor]] = []

    def made() -> Iterator[tuple[str, Tensor]]:
        for name in "abc":
            assert not [reference for reference in alive if reference() is not None]
            tensor = torch.zeros(4)
            alive.append(weakref.ref(tensor))
            pair = [(name, tensor)]
            del tensor
            yield pair.pop()

    write_weights(tmp_path, described({name: torch.zeros(4) for name in "abc"}), made())
    assert len(alive) == 3


def test_nothing_is_overwritten_unless_asked(hf: Path, nemo: Path, tmp_path: Path) -> None:
    before = nemo.read_bytes()
    with pytest.raises(ValueError, match=r"base\.nemo exists already"):
        import_hf(hf, nemo)
    assert nemo.read_bytes() == before
    (tmp_path / "other.tokenizer").mkdir()
    (tmp_path / "other.tokenizer" / "mine").touch()
    with pytest.raises(ValueError, match=r"other\.tokenizer exists already"):
        import_hf(hf, tmp_path / "other.nemo")
    (tmp_path / "back").mkdir()
    (tmp_path / "back" / "mine").touch()
    with pytest.raises(ValueError, match="back exists already"):
        export_hf(nemo, tmp_path / "back")
    assert [path.name for path in (tmp_path / "back").iterdir()] == ["mine"]


def test_overwrite_replaces_all_of_it(hf: Path, nemo: Path, tmp_path: Path) -> None:
    (tmp_path / "base.tokenizer" / "stale").touch()
    other = write_hf(tmp_path / "other", "llama")
    import_hf(other, nemo, overwrite=True)
    assert not (tmp_path / "base.tokenizer" / "stale").exists()
    (tmp_path / "back").mkdir()
    (tmp_path / "back" / "stale").touch()
    export_hf(nemo, tmp_path / "back", overwrite=True)
    assert not (tmp_path / "back" / "stale").exists()
    assert differing(read_all(other), read_all(tmp_path / "back")) == []
    assert {path.name for path in tmp_path.iterdir()} == {
        "hf", "other", "back", "base.nemo", "base.tokenizer", "base.manifest.json"
    }  # fmt: skip


def test_a_failed_conversion_leaves_nothing_behind(
    hf: Path, nemo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*arguments: Any, **named: Any) -> None:
        raise KeyboardInterrupt

    before = {path.name for path in tmp_path.iterdir()}
    monkeypatch.setattr("nemo_minordpo.convert.hf_to_nemo.publish_nemo", interrupt)
    with pytest.raises(KeyboardInterrupt):
        import_hf(hf, tmp_path / "new.nemo")
    monkeypatch.setattr("nemo_minordpo.convert.nemo_to_hf.write_weights", interrupt)
    with pytest.raises(KeyboardInterrupt):
        export_hf(nemo, tmp_path / "new")
    assert {path.name for path in tmp_path.iterdir()} == before


def rewrite(folder: Path, change: dict[str, Tensor | None]) -> None:
    """Change tensors of a folder; None removes one."""
    tensors = {**read_all(folder), **change}
    save_file({n: t for n, t in tensors.items() if t is not None}, folder / "model.safetensors")


def shard(folder: Path, weight_map: dict[str, str]) -> None:
    """Turn a folder's only weight file into a shard named `one.safetensors`."""
    (folder / "model.safetensors").rename(folder / "one.safetensors")
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


K_PROJ = "model.layers.1.self_attn.k_proj.weight"
DAMAGES = {
    "missing tensor": (
        lambda hf: rewrite(hf, {K_PROJ: None}),
        f"{K_PROJ} is missing, but config.json requires it",
    ),
    "extra tensor": (lambda hf: rewrite(hf, {"score.weight": torch.ones(2)}), "score.weight is present"),
    "wrong shape": (
        lambda hf: rewrite(hf, {K_PROJ: torch.ones(4, 24)}),
        f"{K_PROJ} has shape (4, 24), but config.json implies (8, 24)",
    ),
    "wrong type": (
        lambda hf: rewrite(hf, {K_PROJ: torch.ones(8, 24, dtype=torch.int8)}),
        f"{K_PROJ} has type I8",
    ),
    "truncated header": (
        lambda hf: (hf / "model.safetensors").write_bytes((hf / "model.safetensors").read_bytes()[:100]),
        "model.safetensors: damaged or incomplete",
    ),
    "truncated data": (
        lambda hf: (hf / "model.safetensors").write_bytes((hf / "model.safetensors").read_bytes()[:-10]),
        "model.safetensors: damaged or incomplete",
    ),
    "empty file": (lambda hf: (hf / "model.safetensors").write_bytes(b""), "model.safetensors: damaged or incomplete"),
    "no weights": (lambda hf: (hf / "model.safetensors").unlink(), "neither model.safetensors nor"),
    "pickled weights": (
        lambda hf: (hf / "model.safetensors").rename(hf / "pytorch_model.bin"),
        "pytorch_model.bin: pickled weights",
    ),
    "another tensor in the shards": (
        lambda hf: (
            rewrite(hf, {"score.weight": torch.ones(2)}),
            shard(hf, dict.fromkeys([*read_all(hf), "score.weight"], "one.safetensors")),
        ),
        "score.weight is present",
    ),
    "the index leaves a tensor out": (
        lambda hf: shard(hf, dict.fromkeys(sorted({*read_all(hf)} - {K_PROJ}), "one.safetensors")),
        f"{K_PROJ} is missing",
    ),
    "the index names a tensor that no file has": (
        lambda hf: (
            rewrite(hf, {K_PROJ: None}),
            shard(hf, dict.fromkeys([*read_all(hf), K_PROJ], "one.safetensors")),
        ),
        f"{K_PROJ} is missing",
    ),
    "no config": (lambda hf: (hf / "config.json").unlink(), "config.json: no such file"),
    "config of another model": (
        lambda hf: (hf / "config.json").write_text(json.dumps(config_of("llama"))),
        "k_proj.bias, model.layers.0.self_attn.q_proj.bias",
    ),
    "one layer of another type": (
        lambda hf: rewrite(hf, {K_PROJ: read_all(hf)[K_PROJ].bfloat16()}),
        "layers.0.self_attn.q_proj.weight float32 and model.layers.1.self_attn.k_proj.weight bfloat16), but a "
        "checkpoint has one type for them: --dtype float32 keeps every value exactly, --dtype bfloat16 rounds",
    ),
    "damaged tokenizer": (
        lambda hf: (hf / "tokenizer.json").write_bytes((hf / "tokenizer.json").read_bytes()[:-1]),
        "cannot load a Hugging Face tokenizer from it",
    ),
    "linked tokenizer": (
        lambda hf: (hf / "merges.txt").symlink_to(hf / "gone"),
        "merges.txt: a broken symbolic link",
    ),
    "no tokenizer": (lambda hf: (hf / "tokenizer.json").unlink(), "no tokenizer in it"),
}


@pytest.mark.parametrize("what", DAMAGES)
def test_damaged_source_is_named_and_nothing_is_written(hf: Path, tmp_path: Path, what: str) -> None:
    damage, said = DAMAGES[what]
    damage(hf)
    with pytest.raises(ValueError, match=str(hf)) as error:
        import_hf(hf, tmp_path / "base.nemo")
    assert said in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]


def test_name_of_the_output(hf: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"ends in \.nemo"):
        import_hf(hf, tmp_path / "base.tar")


def test_rotary_frequencies_of_old_files_are_ignored(hf: Path, tmp_path: Path) -> None:
    rewrite(hf, {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(2)})
    import_hf(hf, tmp_path / "base.nemo")
    assert (tmp_path / "base.nemo").is_file()


def test_a_tied_models_own_head_must_equal_its_embedding(tmp_path: Path) -> None:
    hf = write_hf(tmp_path / "hf", tie_word_embeddings=True)
    embedding = read_all(hf)["model.embed_tokens.weight"]
    rewrite(hf, {"lm_head.weight": embedding.clone()})
    import_hf(hf, tmp_path / "base.nemo")
    rewrite(hf, {"lm_head.weight": embedding + 1e-3})
    with pytest.raises(ValueError, match=r"lm_head\.weight differs from model\.embed_tokens\.weight"):
        import_hf(hf, tmp_path / "other.nemo")


@pytest.fixture
def untied_by_nemo(tmp_path: Path) -> tuple[Path, Path]:
    """(a tied model's folder, a `.nemo` with a separate output layer, as NeMo's converters write it)."""
    tied = write_hf(tmp_path / "tied", tie_word_embeddings=True)
    untied = shutil.copytree(tied, tmp_path / "untied")
    (untied / "config.json").write_text(json.dumps(config_of(tie_word_embeddings=False)))
    rewrite(untied, {"lm_head.weight": read_all(tied)["model.embed_tokens.weight"].clone()})
    import_hf(untied, tmp_path / "equal.nemo")
    return tied, untied


def test_equal_matrices_are_exported_as_tied(untied_by_nemo: tuple[Path, Path], tmp_path: Path) -> None:
    tied, _ = untied_by_nemo
    export_hf(tmp_path / "equal.nemo", tmp_path / "back", tokenizer=tied)
    assert differing(read_all(tied), read_all(tmp_path / "back")) == []
    assert json.loads((tmp_path / "back" / "config.json").read_text())["tie_word_embeddings"] is True


def test_matrices_that_drifted_apart_are_exported_as_untied(
    untied_by_nemo: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tied, untied = untied_by_nemo
    rewrite(untied, {"lm_head.weight": tensors_of(config_of())["lm_head.weight"]})
    import_hf(untied, tmp_path / "drifted.nemo")
    export_hf(tmp_path / "drifted.nemo", tmp_path / "back", tokenizer=tied)
    assert differing(read_all(untied), read_all(tmp_path / "back")) == []
    assert json.loads((tmp_path / "back" / "config.json").read_text())["tie_word_embeddings"] is False
    assert "exported with tie_word_embeddings=false" in capsys.readouterr().err


def test_an_untied_model_without_output_layer_is_refused(untied_by_nemo: tuple[Path, Path], tmp_path: Path) -> None:
    tied, untied = untied_by_nemo
    import_hf(tied, tmp_path / "tied.nemo")
    with pytest.raises(ValueError, match=r"no model\.output_layer\.weight"):
        export_hf(tmp_path / "tied.nemo", tmp_path / "back", tokenizer=untied)


def test_every_kind_of_source(hf: Path, nemo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The unpacked folder, a run with its result, a run with checkpoints, a checkpoint, one without a config."""
    wanted = read_all(hf)
    unpacked = unpack(nemo, tmp_path / "unpacked")
    run = tmp_path / "run"
    for step in (9, 10, 200):
        shutil.copytree(unpacked / "model_weights", run / "checkpoints" / f"step_{step:06}")
    (run / "checkpoints" / "step_000200" / "metadata.json").unlink()  # stopped while it was written
    (run / "checkpoints" / ".step_000300.tmp").mkdir()
    shutil.copy(unpacked / "model_config.yaml", run / "model_config.yaml")
    alone = shutil.copytree(unpacked / "model_weights", tmp_path / "a" / "b" / "alone")
    sources = {unpacked: None, run: None, run / "checkpoints" / "step_000009": None, alone: hf}
    for number, (source, tokenizer) in enumerate(sources.items()):
        manifest = export_hf(source, tmp_path / f"back{number}", tokenizer=tokenizer)
        assert differing(wanted, read_all(tmp_path / f"back{number}")) == []
        if source == run:
            assert manifest.settings["source"] == str(run / "checkpoints" / "step_000010")
    assert "in or above it; trusting" in capsys.readouterr().err
    shutil.copy(nemo, run / "model.nemo")
    assert export_hf(run, tmp_path / "result").settings["source"] == str(run / "model.nemo")
    assert Manifest.read(tmp_path / "result").stage == "export-hf"


def test_a_moved_nemo_finds_the_tokenizer_beside_it(hf: Path, nemo: Path, tmp_path: Path) -> None:
    """Even if its old path has other files: on another machine that path may belong to another model."""
    (tmp_path / "elsewhere").mkdir()
    for name in ("base.nemo", "base.tokenizer"):
        (tmp_path / name).rename(tmp_path / "elsewhere" / name)
    export_hf(tmp_path / "elsewhere" / "base.nemo", tmp_path / "back")
    assert differing(read_all(hf), read_all(tmp_path / "back")) == []
    write_hf(tmp_path / "base.tokenizer", "llama")
    again = export_hf(tmp_path / "elsewhere" / "base.nemo", tmp_path / "again")
    assert again.settings["tokenizer"] == str(tmp_path / "elsewhere" / "base.tokenizer")
    for file in ("config.json", *TOKENIZER_FILES):
        assert (tmp_path / "again" / file).read_bytes() == (hf / file).read_bytes()


def test_a_moved_run_has_its_tokenizer_with_it(hf: Path, nemo: Path, tmp_path: Path) -> None:
    """For its result and its checkpoints, without any files of the machine that it was trained on."""
    run = tmp_path / "run"
    shutil.copytree(unpack(nemo, tmp_path / "unpacked") / "model_weights", run / "checkpoints" / "step_000010")
    shutil.copy(tmp_path / "unpacked" / "model_config.yaml", run / "model_config.yaml")
    (tmp_path / "base.tokenizer").rename(run / "model.tokenizer")
    export_hf(run, tmp_path / "of-checkpoint")
    shutil.copy(nemo, run / "model.nemo")
    export_hf(run, tmp_path / "of-result")
    for folder in ("of-checkpoint", "of-result"):
        assert differing(read_all(hf), read_all(tmp_path / folder)) == []
        assert (tmp_path / folder / "generation_config.json").read_bytes() == TOKENIZER_FILES["generation_config.json"]


def test_config_of_another_model_is_refused_by_key(nemo: Path, tmp_path: Path) -> None:
    for changes, said in (
        ({"rope_theta": 10000.0}, "rotary_base: 20000.0 instead of 10000.0"),
        ({"rms_norm_eps": 1e-6}, "layernorm_epsilon: 1e-05 instead of 1e-06"),
        ({"num_key_value_heads": 6}, "num_query_groups: 2 instead of 6"),
    ):
        other = write_hf(tmp_path / next(iter(changes)), "qwen2", **changes)
        with pytest.raises(ValueError, match=r"base\.nemo: its model_config\.yaml contradicts") as error:
            export_hf(nemo, tmp_path / "back", tokenizer=other)
        assert said in str(error.value)
    llama = write_hf(tmp_path / "llama")
    with pytest.raises(ValueError, match="qkv_bias: True instead of False"):
        export_hf(nemo, tmp_path / "back", tokenizer=llama)


def test_a_vocabulary_that_does_not_fit_is_refused(nemo: Path, tmp_path: Path) -> None:
    larger = write_hf(tmp_path / "larger", "qwen2", vocab_size=257)
    with pytest.raises(ValueError, match=r"embedding\.word_embeddings\.weight has shape \(256, 24\)"):
        export_hf(nemo, tmp_path / "back", tokenizer=larger)


def test_bad_sources_of_an_export(nemo: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such file or folder"):
        export_hf(tmp_path / "nowhere", tmp_path / "back")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"neither a \.nemo, nor"):
        export_hf(tmp_path / "empty", tmp_path / "back")
    (tmp_path / "empty" / "checkpoints").mkdir()
    with pytest.raises(ValueError, match="no complete checkpoint"):
        export_hf(tmp_path / "empty", tmp_path / "back")
    cut = tmp_path / "cut.nemo"
    cut.write_bytes(nemo.read_bytes()[: nemo.stat().st_size // 2])
    with pytest.raises(ValueError, match=r"cut\.nemo: damaged"):
        export_hf(cut, tmp_path / "back")
    cut.write_bytes(b"no archive at all")
    with pytest.raises(ValueError, match=r"cut\.nemo: damaged"):
        export_hf(cut, tmp_path / "back")
    with tarfile.open(tmp_path / "legacy.nemo", "w") as archive:
        archive.add(unpack(nemo, tmp_path / "unpacked") / "model_config.yaml", "model_config.yaml")
    with pytest.raises(ValueError, match="must be saved again"):
        export_hf(tmp_path / "legacy.nemo", tmp_path / "back")
    shutil.rmtree(tmp_path / "base.tokenizer")
    with pytest.raises(ValueError, match=r"no config\.json in .*base\.tokenizer.* --tokenizer"):
        export_hf(nemo, tmp_path / "back")
    assert not (tmp_path / "back").exists()


def test_paths_that_leave_the_archive_are_not_followed(hf: Path, nemo: Path, tmp_path: Path) -> None:
    unpacked = unpack(nemo, tmp_path / "unpacked")
    with tarfile.open(tmp_path / "evil.nemo", "w") as archive:
        archive.add(unpacked / "model_config.yaml", "./model_config.yaml")
        archive.add(unpacked / "model_weights", "./model_weights")
        archive.add(hf / "config.json", "model_weights/../../../escaped.json")
    export_hf(tmp_path / "evil.nemo", tmp_path / "deep" / "back", tokenizer=hf)
    assert not list(tmp_path.rglob("escaped.json"))
