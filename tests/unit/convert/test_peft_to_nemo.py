"""Convert a PEFT folder to a `.nemo` of adapters: the inverse of export, and input that NeMo's LoRA cannot express."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from peft import LoraConfig
from safetensors.torch import load_file, save_file
from test_convert_adapters import (
    ALPHA,
    LAYERS,
    RANK,
    merged_by_hand,
    random_adapters,
    require_close,
    stacked,
    write_run,
)
from test_convert_round_trip import read_all, unpack

from nemo_minordpo.convert.checkpoint import Checkpoint
from nemo_minordpo.convert.nemo_to_hf import export_hf
from nemo_minordpo.convert.peft_folder import export_peft
from nemo_minordpo.convert.peft_to_nemo import import_peft

FIRST = "base_model.model.model.layers.0.self_attn."


@pytest.fixture
def run(base: Path, tmp_path: Path) -> Path:
    return write_run(tmp_path / "run", base, stacked(random_adapters()))


@pytest.fixture
def peft(run: Path, tmp_path: Path) -> Path:
    export_peft(run, tmp_path / "peft")
    return tmp_path / "peft"


def test_there_and_back(hf: Path, base: Path, peft: Path, tmp_path: Path) -> None:
    manifest = import_peft(peft, tmp_path / "adapters.nemo")  # adapter_config.json names the model
    assert manifest.counts["peft_tensors"] == 2 * 7 * LAYERS
    weights = Checkpoint(unpack(tmp_path / "adapters.nemo", tmp_path / "unpacked") / "model_weights")
    wanted = stacked(random_adapters())
    assert weights.tensors.keys() == wanted.keys()
    assert all(torch.equal(weights.read(name), tensor) for name, tensor in wanted.items())
    lora = OmegaConf.load(tmp_path / "unpacked/model_config.yaml").peft.lora_tuning
    assert (lora.adapter_dim, lora.alpha, lora.adapter_dropout) == (RANK, ALPHA, 0.1)
    assert lora.target_modules == ["attention_qkv", "attention_dense", "mlp_fc1", "mlp_fc2"]
    export_hf(tmp_path / "adapters.nemo", tmp_path / "merged", base_nemo=base)
    require_close(read_all(tmp_path / "merged"), merged_by_hand(hf, random_adapters()))


def test_some_modules_in_another_type(base: Path, tmp_path: Path) -> None:
    some = {key: value for key, value in random_adapters().items() if "kqv" not in key[0]}
    export_peft(write_run(tmp_path / "run", base, stacked(some)), tmp_path / "peft")
    import_peft(tmp_path / "peft", tmp_path / "a.nemo", base=base, dtype="bfloat16")
    weights = Checkpoint(unpack(tmp_path / "a.nemo", tmp_path / "unpacked") / "model_weights")
    assert weights.tensors.keys() == stacked(some).keys()
    assert all(torch.equal(weights.read(name), tensor.bfloat16()) for name, tensor in stacked(some).items())
    lora = OmegaConf.load(tmp_path / "unpacked/model_config.yaml").peft.lora_tuning
    assert lora.target_modules == ["attention_dense", "mlp_fc1", "mlp_fc2"]


def test_where_its_model_is(hf: Path, base: Path, peft: Path, tmp_path: Path) -> None:
    for number, named in enumerate((hf, base)):
        import_peft(peft, tmp_path / f"{number}.nemo", base=named)
    change(peft, {"base_model_name_or_path": "Qwen/Qwen2.5-0.5B"})
    with pytest.raises(ValueError, match=r"'Qwen/Qwen2.5-0.5B' is not a model folder: name .* with --base"):
        import_peft(peft, tmp_path / "other.nemo")
    with pytest.raises(ValueError, match=r"no config\.json in .*elsewhere\.tokenizer"):
        import_peft(peft, tmp_path / "other.nemo", base=tmp_path / "elsewhere.nemo")


def test_a_path_of_another_working_directory_is_not_given_away(
    base: Path,
    run: Path,
    tmp_path: Path,
) -> None:
    manifest = base.with_name("base.manifest.json")
    said = json.loads(manifest.read_text())
    said["inputs"] = {Path(path).name: digest for path, digest in said["inputs"].items()}
    manifest.write_text(json.dumps(said))
    export_peft(run, tmp_path / "peft")
    assert json.loads((tmp_path / "peft/adapter_config.json").read_text())["base_model_name_or_path"] is None


def change(peft: Path, settings: dict[str, Any]) -> None:
    path = peft / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))


def test_all_that_peft_writes_of_plain_lora(peft: Path, tmp_path: Path) -> None:
    written = {key: value for key, value in LoraConfig(task_type="CAUSAL_LM").to_dict().items() if value is not None}
    ours = json.loads((peft / "adapter_config.json").read_text())
    assert len(written.keys() - ours.keys()) > 10
    change(peft, {**written, **ours})
    import_peft(peft, tmp_path / "adapters.nemo")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"use_rslora": True}, "use_rslora=True: only plain LoRA"),
        ({"use_dora": True}, "use_dora=True"),
        ({"modules_to_save": ["lm_head"]}, r"modules_to_save=\['lm_head'\]"),
        ({"rank_pattern": {"q_proj": 1}}, "rank_pattern="),
        ({"alpha_pattern": {"q_proj": 1}}, "alpha_pattern="),
        ({"bias": "lora_only"}, "bias='lora_only'"),
        ({"layers_to_transform": [0]}, "layers_to_transform="),
        ({"init_lora_weights": "pissa"}, "init_lora_weights='pissa'"),
        ({"of_a_newer_peft": 2}, "of_a_newer_peft=2"),
        ({"peft_type": "IA3"}, "peft_type='IA3': only LORA"),
        ({"lora_alpha": None}, "lora_alpha=None: expected a positive number"),
        ({"r": 3}, r"q_proj\.lora_A\.weight has shape \(2, 24\); rank 3 and config\.json imply \(3, 24\)"),
    ],
)
def test_settings_of_another_kind(peft: Path, tmp_path: Path, settings: dict[str, Any], said: str) -> None:
    change(peft, settings)
    with pytest.raises(ValueError, match=said):
        import_peft(peft, tmp_path / "adapters.nemo")
    assert not (tmp_path / "adapters.nemo").exists()


Q_A, Q_DORA, O_B = (
    FIRST + name for name in ("q_proj.lora_A.weight", "q_proj.lora_magnitude_vector", "o_proj.lora_B.weight")
)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (lambda t: t | {Q_A: t[Q_A] + 1}, "q_proj, k_proj and v_proj have different lora_A"),
        (
            lambda t: {k: v for k, v in t.items() if "k_proj" not in k},
            r"k_proj\.lora_A\.weight is missing \(6 in all\)",
        ),
        (lambda t: {k: v for k, v in t.items() if "layers.1" not in k}, r"layers\.1\..* is missing"),
        (lambda t: t | {Q_DORA: torch.ones(2)}, "lora_magnitude_vector: expected adapters of the linear"),
        (lambda t: {}, "it is empty"),
        (lambda t: t | {O_B: torch.full((24, RANK), torch.nan)}, r"o_proj\.lora_B\.weight is not finite"),
        (lambda t: t | {O_B: torch.ones(24, RANK, dtype=torch.int8)}, "has type int8"),
        (lambda t: t | {O_B: torch.ones(8, RANK)}, r"\(8, 2\); .* imply \(24, 2\)"),
        (
            lambda t: {k: v.half() if "o_proj" in k else v for k, v in t.items()},
            "types float16, float32: pick one with",
        ),
    ],
    ids=["an A each", "no keys", "a layer", "DoRA", "empty", "NaN", "int8", "shape", "types"],
)
def test_tensors_of_another_kind(peft: Path, tmp_path: Path, changed: Any, said: str) -> None:
    save_file(changed(load_file(peft / "adapter_model.safetensors")), peft / "adapter_model.safetensors")
    with pytest.raises(ValueError, match=said):
        import_peft(peft, tmp_path / "adapters.nemo")


def test_files_that_are_missing_or_damaged(peft: Path, tmp_path: Path) -> None:
    shutil.copytree(peft, tmp_path / "other")
    (tmp_path / "other/adapter_model.safetensors").write_bytes(b"no header")
    with pytest.raises(ValueError, match="damaged"):
        import_peft(tmp_path / "other", tmp_path / "adapters.nemo")
    (tmp_path / "other/adapter_model.safetensors").unlink()
    with pytest.raises(ValueError, match="save the adapters as safetensors"):
        import_peft(tmp_path / "other", tmp_path / "adapters.nemo")
    (tmp_path / "other/adapter_config.json").write_text("[")
    with pytest.raises(ValueError, match="invalid JSON"):
        import_peft(tmp_path / "other", tmp_path / "adapters.nemo")


def test_as_a_command(peft: Path, base: Path, tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from nemo_minordpo.__main__ import app

    ran = CliRunner().invoke(app, ["import-hf", str(peft), str(tmp_path / "adapters.nemo"), "--base", str(base)])
    assert "42 peft tensors" in ran.output
    assert (tmp_path / "adapters.tokenizer/config.json").is_file()
