"""Sources that export-hf accepts: NeMo-Aligner's results, NeMo 2's checkpoints, packed and unpacked files."""

import gzip
import os
import shutil
import tarfile
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from omegaconf import OmegaConf
from test_convert_round_trip import differing, read_all, unpack

from nemo_minordpo.convert.checkpoint import Checkpoint
from nemo_minordpo.convert.nemo_source import resolve_run
from nemo_minordpo.convert.nemo_to_hf import export_hf

STEM = "megatron_gpt--val_loss={:.3f}-step={}-consumed_samples={}-epoch=1"


@pytest.fixture
def unpacked(base: Path, tmp_path: Path) -> Path:
    return unpack(base, tmp_path / "unpacked")


@pytest.fixture
def results(unpacked: Path, tmp_path: Path) -> Path:
    """Results as NeMo-Aligner leaves them: the best two checkpoints and the last, hparams.yaml, a .nemo."""
    folder = tmp_path / "results"
    names = [STEM.format(0.6, 90, 360), STEM.format(0.5, 100, 400), STEM.format(0.5, 100, 400) + "-last"]
    for name in names:
        shutil.copytree(unpacked / "model_weights", folder / "checkpoints" / name)
    shutil.copy(tmp_path / "base.nemo", folder / "checkpoints" / "megatron_gpt.nemo")
    settings = {
        "trainer": {"devices": 8},
        "model": OmegaConf.load(unpacked / "model_config.yaml"),
        "pretrained_checkpoint": {"restore_from_path": str(tmp_path / "base.nemo")},
    }
    (folder / "hparams.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(settings)))
    return folder


def test_results_stand_for_their_newest_checkpoint(hf: Path, results: Path, tmp_path: Path) -> None:
    manifest = export_hf(results, tmp_path / "out")
    last = results / "checkpoints" / (STEM.format(0.5, 100, 400) + "-last")
    assert manifest.settings["source"] == str(last)
    assert differing(read_all(hf), read_all(tmp_path / "out")) == []
    best = results / "checkpoints" / STEM.format(0.6, 90, 360)
    assert export_hf(best, tmp_path / "best").settings["source"] == str(best)


def test_unfinished_checkpoints_are_skipped(results: Path) -> None:
    checkpoints = results / "checkpoints"
    for name in (STEM.format(0.5, 100, 400) + "-last", STEM.format(0.5, 100, 400)):
        (checkpoints / f"{name}-unfinished").touch()  # NeMo's mark while it writes
    assert resolve_run(results) == checkpoints / STEM.format(0.6, 90, 360)
    (checkpoints / STEM.format(0.6, 90, 360) / "metadata.json").unlink()
    assert resolve_run(results) == checkpoints / "megatron_gpt.nemo"
    shutil.copy(checkpoints / "megatron_gpt.nemo", checkpoints / "megatron_gpt-v1.nemo")
    os.utime(checkpoints / "megatron_gpt-v1.nemo", (1, 1))  # the one before
    assert resolve_run(results) == checkpoints / "megatron_gpt.nemo"


def test_settings_of_a_run_are_checked_against_the_config(results: Path, tmp_path: Path) -> None:
    settings: Any = OmegaConf.load(results / "hparams.yaml")
    settings.model.rotary_base = 5000.0
    OmegaConf.save(settings, results / "hparams.yaml")
    with pytest.raises(ValueError, match=r"rotary_base: 5000\.0 instead of 20000\.0"):
        export_hf(results, tmp_path / "out")
    # NeMo's own training uses a different key for the same
    OmegaConf.save(OmegaConf.create({"cfg": settings.model}), results / "hparams.yaml")
    with pytest.raises(ValueError, match=r"rotary_base: 5000\.0 instead of 20000\.0"):
        export_hf(results, tmp_path / "out")


def test_a_tokenizer_that_moved_with_its_base(hf: Path, results: Path, tmp_path: Path) -> None:
    """The model config names a folder on another machine, but the files next to the base are here."""
    settings: Any = OmegaConf.load(results / "hparams.yaml")
    settings.model.tokenizer.type = "Qwen/Qwen2-0.5B"
    OmegaConf.save(settings, results / "hparams.yaml")
    assert export_hf(results, tmp_path / "out").settings["tokenizer"] == str(tmp_path / "base.tokenizer")


def test_files_of_single_ranks_are_refused_by_name(results: Path, tmp_path: Path) -> None:
    shutil.rmtree(results / "checkpoints")
    (results / "checkpoints" / "mp_rank_00").mkdir(parents=True)
    (results / "checkpoints" / "mp_rank_00" / f"{STEM.format(0.5, 100, 400)}-last.ckpt").touch()
    with pytest.raises(ValueError, match=r"no complete checkpoint.*per-rank \.ckpt files cannot be read, but the \.n"):
        export_hf(results, tmp_path / "out")


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_nemo_files_packed_either_way(hf: Path, unpacked: Path, tmp_path: Path, mode: Any) -> None:
    packed = tmp_path / "packed.nemo"
    with tarfile.open(packed, mode) as archive:
        archive.add(unpacked, ".")
    export_hf(packed, tmp_path / "out", tokenizer=hf)
    assert differing(read_all(hf), read_all(tmp_path / "out")) == []
    packed.write_bytes(packed.read_bytes()[: packed.stat().st_size // 2])
    with pytest.raises(ValueError, match=r"packed\.nemo: damaged"):
        export_hf(packed, tmp_path / "other", tokenizer=hf)
    packed.write_bytes(gzip.compress(b"x" * 2000)[:-8] + b"12345678")
    with pytest.raises(ValueError, match=r"packed\.nemo: damaged"):
        export_hf(packed, tmp_path / "other", tokenizer=hf)


def test_a_checkpoint_of_nemo_2(hf: Path, unpacked: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its names start with `module.`, its weights are in a folder `weights`, and it has no model_config.yaml."""
    stored = Checkpoint(unpacked / "model_weights")
    tensors = {f"module.{name}": stored.read(name) for name in stored.tensors}
    dcp.save(tensors | {"optimizer.step": torch.ones(1)}, checkpoint_id=tmp_path / "nemo2" / "weights")
    (tmp_path / "nemo2" / "weights" / "metadata.json").write_text('{"sharded_backend": "torch_dist"}')
    export_hf(tmp_path / "nemo2", tmp_path / "out", tokenizer=hf)
    assert differing(read_all(hf), read_all(tmp_path / "out")) == []
    assert "in or above it; trusting" in capsys.readouterr().err


def test_an_unpacked_folder_without_its_config(unpacked: Path, tmp_path: Path) -> None:
    (unpacked / "model_config.yaml").unlink()
    with pytest.raises(ValueError, match=r"unpacked: no model_config\.yaml in it"):
        export_hf(unpacked, tmp_path / "out")


def test_files_of_the_same_name_that_are_no_settings(hf: Path, results: Path, tmp_path: Path) -> None:
    """An unrelated YAML file above a checkpoint does no harm."""
    (results / "config.yaml").write_text("- a list\n")
    (results / "checkpoints" / "hparams.yaml").write_text("{broken")
    export_hf(results, tmp_path / "out")
    assert differing(read_all(hf), read_all(tmp_path / "out")) == []
