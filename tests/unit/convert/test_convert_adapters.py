"""LoRA adapters, merged and as a PEFT folder, against sums written out per projection; rejected input."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file
from test_convert_round_trip import read_all, unpack
from tiny_hf import write_hf
from torch import Tensor

from nemo_minordpo.convert.checkpoint import Chunk, StoredTensor, write_checkpoint
from nemo_minordpo.convert.hf_to_nemo import import_hf
from nemo_minordpo.convert.nemo_to_hf import export_hf
from nemo_minordpo.convert.peft_folder import export_peft

# tiny_hf's model: 3 layers, 6 heads of 4 in 2 groups, hidden size 24, feed-forward size 20
LAYERS, RANK, ALPHA = 3, 2, 5
SIZES = {"q_proj": 24, "k_proj": 8, "v_proj": 8, "o_proj": 24, "gate_proj": 20, "up_proj": 20, "down_proj": 24}
INPUTS = {"o_proj": 24, "down_proj": 20}
PLACES = {
    "self_attention.adapter_layer.lora_kqv_adapter": ("q_proj", "k_proj", "v_proj"),
    "self_attention.adapter_layer.lora_dense_attention_adapter": ("o_proj",),
    "mlp.adapter_layer.lora_hto4h_adapter": ("gate_proj", "up_proj"),
    "mlp.adapter_layer.lora_4htoh_adapter": ("down_proj",),
}
PEFT = {"peft_scheme": "lora", "lora_tuning": {"adapter_dim": RANK, "alpha": ALPHA, "adapter_dropout": 0.1}}


def random_adapters() -> dict[tuple[str, int], tuple[Tensor, dict[str, Tensor]]]:
    """(place, layer) -> A and the B of each projection."""
    draw = torch.Generator().manual_seed(3)
    return {
        (place, layer): (
            torch.randn(RANK, INPUTS.get(names[0], 24), generator=draw),
            {name: torch.randn(SIZES[name], RANK, generator=draw) for name in names},
        )
        for place, names in PLACES.items()
        for layer in range(LAYERS)
    }


def joined(b: dict[str, Tensor]) -> Tensor:
    """B in NeMo's layout: three query heads, a key head and a value head per group, with 4 rows each."""
    if "q_proj" not in b:
        return torch.cat(list(b.values()))
    q, k, v = b.values()
    return torch.cat([q[:12], k[:4], v[:4], q[12:], k[4:], v[4:]])


def stacked(adapters: dict[tuple[str, int], tuple[Tensor, dict[str, Tensor]]]) -> dict[str, Tensor]:
    """The adapters by their names in a distributed checkpoint."""
    tensors = {}
    for place in dict.fromkeys(place for place, _ in adapters):
        layers = [adapters[place, layer] for layer in range(LAYERS)]
        tensors[f"decoder.layers.{place}.linear_in.weight"] = torch.stack([a for a, _ in layers])
        tensors[f"decoder.layers.{place}.linear_out.weight"] = torch.stack([joined(b) for _, b in layers])
    return tensors


def write_tensors(folder: Path, tensors: dict[str, Tensor]) -> Path:
    stored = [
        StoredTensor(name, tuple(t.shape), t.dtype, [Chunk((0,) * t.dim(), tuple(t.shape), lambda t=t: t)])
        for name, t in tensors.items()
    ]
    write_checkpoint(folder, stored, [])
    return folder


def write_run(run: Path, base: Path, tensors: dict[str, Tensor], peft: dict[str, Any] | None = None) -> Path:
    """A run folder as `minordpo train` leaves it, with a checkpoint of adapters only."""
    write_tensors(run / "checkpoints" / "step_000004", tensors)
    settings = {"pretrained_checkpoint": {"restore_from_path": str(base)}, "trainer": {"devices": 1}}
    (run / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(settings)))
    config: Any = OmegaConf.load(unpack(base, run / "unpacked") / "model_config.yaml")
    shutil.rmtree(run / "unpacked")
    config.peft = PEFT if peft is None else peft
    OmegaConf.save(config, run / "model_config.yaml")
    return run


def merged_by_hand(hf: Path, adapters: dict[tuple[str, int], tuple[Tensor, dict[str, Tensor]]]) -> dict[str, Tensor]:
    tensors = {name: tensor.float() for name, tensor in read_all(hf).items()}
    for (place, layer), (a, b) in adapters.items():
        block = "self_attn" if "attention" in place else "mlp"
        for name, rows in b.items():
            tensors[f"model.layers.{layer}.{block}.{name}.weight"] += ALPHA / RANK * rows @ a
    return tensors


@pytest.fixture
def run(base: Path, tmp_path: Path) -> Path:
    return write_run(tmp_path / "run", base, stacked(random_adapters()))


def require_close(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        torch.testing.assert_close(found[name].float(), tensor, rtol=1e-6, atol=1e-6, msg=name)


def test_merged_weights_are_the_sums(hf: Path, run: Path, tmp_path: Path) -> None:
    manifest = export_hf(run, tmp_path / "out")
    wanted = merged_by_hand(hf, random_adapters())
    require_close(read_all(tmp_path / "out"), wanted)
    changed = [name for name, tensor in read_all(hf).items() if not torch.allclose(tensor, wanted[name], atol=1e-3)]
    assert len(changed) == 7 * LAYERS  # control: there was something to merge
    assert set(manifest.inputs) == {
        str(tmp_path / "base.nemo"), str(run / "checkpoints" / "step_000004" / ".metadata")
    }  # fmt: skip


def test_merged_weights_are_rounded_once(tmp_path: Path) -> None:
    hf = write_hf(tmp_path / "half", dtype=torch.bfloat16, torch_dtype="bfloat16")
    import_hf(hf, tmp_path / "half.nemo")
    run = write_run(tmp_path / "run", tmp_path / "half.nemo", stacked(random_adapters()))
    export_hf(run, tmp_path / "out")
    export_hf(run, tmp_path / "whole", dtype="float32")
    wanted, found = merged_by_hand(hf, random_adapters()), read_all(tmp_path / "out")
    require_close(read_all(tmp_path / "whole"), wanted)
    # half a unit in the last of bfloat16's 8 places, plus the effect of float32 summation order
    bound = {name: torch.frexp(tensor)[1].float().sub(9).exp2() * (1 + 1e-4) for name, tensor in wanted.items()}
    assert {tensor.dtype for tensor in found.values()} == {torch.bfloat16}
    assert all(((found[name].float() - tensor).abs() <= bound[name]).all() for name, tensor in wanted.items())
    # control: the product also rounded on its own
    name = "model.layers.0.self_attn.o_proj.weight"
    before = read_all(hf)[name]
    twice = before + (wanted[name] - before.float()).bfloat16()
    assert not ((twice.float() - wanted[name]).abs() <= bound[name]).all()


def test_some_modules_only(hf: Path, base: Path, tmp_path: Path) -> None:
    adapters = {key: value for key, value in random_adapters().items() if "kqv" in key[0]}
    run = write_run(tmp_path / "run", base, stacked(adapters))
    export_hf(run, tmp_path / "out")
    require_close(read_all(tmp_path / "out"), merged_by_hand(hf, adapters))
    export_peft(run, tmp_path / "peft")
    assert json.loads((tmp_path / "peft" / "adapter_config.json").read_text())["target_modules"] == [
        "k_proj", "q_proj", "v_proj"
    ]  # fmt: skip


def test_adapters_beside_the_weights(hf: Path, base: Path, run: Path, tmp_path: Path) -> None:
    """A checkpoint with both needs no base."""
    from nemo_minordpo.convert.checkpoint import Checkpoint

    weights = Checkpoint(unpack(base, tmp_path / "unpacked") / "model_weights")
    both = {name: weights.read(name) for name in weights.tensors} | stacked(random_adapters())
    write_tensors(tmp_path / "mixed" / "step_000001", both)
    shutil.copy(run / "model_config.yaml", tmp_path / "mixed")
    export_hf(tmp_path / "mixed" / "step_000001", tmp_path / "out")
    require_close(read_all(tmp_path / "out"), merged_by_hand(hf, random_adapters()))
    with pytest.raises(ValueError, match="has all weights of its model; leave out --base"):
        export_hf(tmp_path / "mixed" / "step_000001", tmp_path / "other", base_nemo=base)


def test_alpha_left_out_is_the_rank(hf: Path, base: Path, tmp_path: Path) -> None:
    peft = {"peft_scheme": "lora", "lora_tuning": {"adapter_dim": RANK, "alpha": None}}
    run = write_run(tmp_path / "run", base, stacked(random_adapters()), peft)
    export_hf(run, tmp_path / "out")
    scaled = {key: (a * RANK / ALPHA, b) for key, (a, b) in random_adapters().items()}
    require_close(read_all(tmp_path / "out"), merged_by_hand(hf, scaled))


def test_peft_folder(hf: Path, run: Path, tmp_path: Path) -> None:
    manifest = export_peft(run, tmp_path / "peft")
    config = json.loads((tmp_path / "peft" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(hf)
    assert (config["r"], config["lora_alpha"], config["lora_dropout"]) == (RANK, ALPHA, 0.1)
    assert config["target_modules"] == sorted(SIZES)
    tensors = load_file(tmp_path / "peft" / "adapter_model.safetensors")
    assert manifest.counts["peft_tensors"] == len(tensors) == 2 * 7 * LAYERS
    for (place, layer), (a, b) in random_adapters().items():
        block = "self_attn" if "attention" in place else "mlp"
        for name, rows in b.items():
            stem = f"base_model.model.model.layers.{layer}.{block}.{name}"
            assert torch.equal(tensors[f"{stem}.lora_A.weight"], a)
            assert torch.equal(tensors[f"{stem}.lora_B.weight"], rows)
    export_peft(run, tmp_path / "half", dtype="bfloat16")
    assert {t.dtype for t in load_file(tmp_path / "half" / "adapter_model.safetensors").values()} == {torch.bfloat16}
    with pytest.raises(ValueError, match="peft exists already"):
        export_peft(run, tmp_path / "peft")


def test_as_commands(hf: Path, base: Path, run: Path, tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from nemo_minordpo.__main__ import app

    def command(*arguments: str | Path) -> str:
        ran = CliRunner().invoke(app, ["export-hf", *map(str, arguments)])
        assert ran.exit_code == 0, ran.output
        return ran.output

    assert "39 hf tensors" in command(run, tmp_path / "merged")
    require_close(read_all(tmp_path / "merged"), merged_by_hand(hf, random_adapters()))
    moved = base.rename(tmp_path / "moved.nemo")
    assert "39 hf tensors" in command(run, tmp_path / "merged", "--base", moved, "--adapters", "merged", "--overwrite")
    said = command(run, tmp_path / "peft", "--adapters", "peft")
    assert "42 peft tensors" in said
    assert load_file(tmp_path / "peft" / "adapter_model.safetensors").keys() == {
        f"base_model.model.model.layers.{layer}.{block}.{name}.lora_{side}.weight"
        for layer in range(LAYERS)
        for block, names in (("self_attn", ("q_proj", "k_proj", "v_proj", "o_proj")), ("mlp", list(SIZES)[4:]))
        for name in names
        for side in "AB"
    }


def test_a_base_that_moved_is_asked_for(hf: Path, base: Path, run: Path, tmp_path: Path) -> None:
    moved = base.rename(tmp_path / "moved.nemo")
    with pytest.raises(ValueError, match=r"base\.nemo, which they were trained on, does not exist: .* --base"):
        export_hf(run, tmp_path / "out")
    export_hf(run, tmp_path / "out", base_nemo=moved)
    require_close(read_all(tmp_path / "out"), merged_by_hand(hf, random_adapters()))
    export_peft(run, tmp_path / "peft")  # needs no weights of the base
    (run / "config.yaml").unlink()
    with pytest.raises(ValueError, match=r"contains only adapters: name the model .* trained on with --base"):
        export_hf(run, tmp_path / "other")
    with pytest.raises(ValueError, match="adapters cannot be added to adapters"):
        export_hf(run, tmp_path / "other", base_nemo=run)


def other_settings(run: Path, **changes: Any) -> None:
    config: Any = OmegaConf.load(run / "model_config.yaml")
    config.peft.lora_tuning = {**config.peft.lora_tuning, **changes}
    OmegaConf.save(config, run / "model_config.yaml")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"adapter_dim": 4}, "adapters of rank 2, but peft.lora_tuning.adapter_dim=4"),
        ({"variant": "canonical"}, "peft.lora_tuning.variant='canonical': only plain LoRA is supported"),
        ({"weight_tying": True}, "peft.lora_tuning.weight_tying=True: only plain LoRA is supported"),
    ],
)
def test_settings_that_cannot_be_exported(run: Path, tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    other_settings(run, **changes)
    for export in (export_hf, export_peft):
        with pytest.raises(ValueError, match=said):
            export(run, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_without_settings_the_scale_is_unknown(hf: Path, run: Path, base: Path, tmp_path: Path) -> None:
    alone = shutil.copytree(run / "checkpoints" / "step_000004", tmp_path / "a" / "b" / "alone")
    with pytest.raises(ValueError, match=r"peft\.lora_tuning, which sets the scale of the adapters"):
        export_hf(alone, tmp_path / "out", tokenizer=hf, base_nemo=base)


def test_adapters_that_do_not_fit(hf: Path, base: Path, tmp_path: Path) -> None:
    wrong = stacked(random_adapters())
    name = "decoder.layers.self_attention.adapter_layer.lora_kqv_adapter.linear_in.weight"
    for number, (change, said) in enumerate(
        (
            ({name: torch.zeros(LAYERS, RANK, 32)}, r"linear_qkv\.weight has shape \(40, 24\), but .* for \(40, 32\)"),
            ({name: torch.zeros(LAYERS, 3, 24)}, r"adapters of different ranks \[2, 3\]"),
            ({name: None}, r"linear_in\.weight is missing or damaged"),
            ({name.replace("lora_kqv", "lora_unfused_kqv"): torch.zeros(3, 2, 24)}, "only plain LoRA adapters"),
        )
    ):
        tensors = {key: value for key, value in {**wrong, **change}.items() if value is not None}
        run = write_run(tmp_path / f"run{number}", base, tensors)
        for export in (export_hf, export_peft):
            with pytest.raises(ValueError, match=said):
                export(run, tmp_path / "out")


def test_a_model_without_adapters_is_no_peft_folder(base: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"base\.nemo: no adapters in it; export it without --adapters peft"):
        export_peft(base, tmp_path / "out")


def rank_parts(tensors: dict[str, Tensor], *, tp: int, pp: int) -> dict[str, dict[str, Tensor]]:
    """Rank file -> its tensors, split like Megatron's layers: the content of NeMo-Aligner's own `.nemo`."""
    files: dict[str, dict[str, Tensor]] = {}
    for name, whole in tensors.items():
        place = name.removeprefix("decoder.layers.")
        for layer in range(LAYERS):
            stage, number = divmod(layer, LAYERS // pp)
            if "linear_in" in name and ("dense" in name or "4htoh" in name):
                parts = whole[layer].chunk(tp, dim=1)
            elif "hto4h" in name and "linear_out" in name:
                gates, ups = (half.chunk(tp) for half in whole[layer].chunk(2))
                parts = [torch.cat(pair) for pair in zip(gates, ups, strict=True)]
            else:
                parts = whole[layer].chunk(tp)
            for rank, part in enumerate(parts):
                folder = "." if tp * pp == 1 else f"mp_rank_{rank:02}"
                folder = f"tp_rank_{rank:02}_pp_rank_{stage:03}" if pp > 1 else folder
                files.setdefault(folder, {})[f"model.decoder.layers.{number}.{place}"] = part.clone()
    return files


def write_rank_files(folder: Path, run: Path, *, tp: int, pp: int) -> Path:
    for name, tensors in rank_parts(stacked(random_adapters()), tp=tp, pp=pp).items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        torch.save(tensors, folder / name / "model_weights.ckpt")
    config: Any = OmegaConf.load(run / "model_config.yaml")
    config.tensor_model_parallel_size, config.pipeline_model_parallel_size = tp, pp
    OmegaConf.save(config, folder / "model_config.yaml")
    return folder


@pytest.mark.parametrize(("tp", "pp"), [(1, 1), (2, 1), (2, 3)])
def test_adapters_of_nemo_aligner(hf: Path, base: Path, run: Path, tmp_path: Path, tp: int, pp: int) -> None:
    """A `.nemo` in a results folder with weights per rank; packed and unpacked."""
    import tarfile

    unpacked = write_rank_files(tmp_path / "unpacked", run, tp=tp, pp=pp)
    results = tmp_path / "results"
    (results / "checkpoints").mkdir(parents=True)
    settings = {"model": {}, "pretrained_checkpoint": {"restore_from_path": str(base)}}
    (results / "hparams.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(settings)))
    with tarfile.open(results / "checkpoints" / "megatron_gpt.nemo", "w:gz") as archive:
        archive.add(unpacked, ".")
    export_hf(results, tmp_path / "out")
    require_close(read_all(tmp_path / "out"), merged_by_hand(hf, random_adapters()))
    export_hf(unpacked, tmp_path / "again", base_nemo=base)
    require_close(read_all(tmp_path / "again"), merged_by_hand(hf, random_adapters()))
    export_peft(results, tmp_path / "peft")
    assert len(load_file(tmp_path / "peft" / "adapter_model.safetensors")) == 2 * 7 * LAYERS


def test_rank_files_that_are_missing_or_damaged(run: Path, base: Path, tmp_path: Path) -> None:
    unpacked = write_rank_files(tmp_path / "unpacked", run, tp=2, pp=1)
    (unpacked / "mp_rank_01" / "model_weights.ckpt").write_bytes(b"PK")
    with pytest.raises(ValueError, match=r"mp_rank_01/model_weights\.ckpt: damaged"):
        export_hf(unpacked, tmp_path / "out", base_nemo=base)
    shutil.rmtree(unpacked / "mp_rank_01")
    with pytest.raises(ValueError, match=r"of layer 0: files of ranks \[1\] are missing"):
        export_hf(unpacked, tmp_path / "out", base_nemo=base)
    torch.save({"model.embedding.word_embeddings.weight": torch.ones(2)}, unpacked / "mp_rank_00/model_weights.ckpt")
    with pytest.raises(ValueError, match=r"model\.embedding\.word_embeddings\.weight is not an adapter of a layer"):
        export_hf(unpacked, tmp_path / "out", base_nemo=base)
