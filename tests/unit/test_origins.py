"""What the manifest next to a file says about that file, and only about that file."""

import pytest

from nemo_minordpo.files import write_json
from nemo_minordpo.origins import origin_of, origins_of
from nemo_minordpo.records import Manifest


@pytest.mark.parametrize(
    ("stage", "file"),
    [("prepare gsm8k", "train.jsonl"), ("prepare hf", "validation.jsonl"), ("train", "model.nemo")],
)
def test_a_folders_manifest_is_about_the_files_that_its_stage_writes(tmp_path, stage, file):
    Manifest(stage=stage, inputs={"a": "1"}, counts={"rows": 3}, roles={"sources": ["a"]}).write(tmp_path)
    wanted = {"stage": stage, "inputs": {"a": "1"}, "settings": {}, "counts": {"rows": 3}, "roles": {"sources": ["a"]}}
    assert origin_of(tmp_path / file) == wanted
    # the user's own files, and a model that was only put there
    assert origins_of(tmp_path / name for name in ("mine.jsonl", "base.nemo", file)) == {str(tmp_path / file): wanted}


def test_an_imported_model_has_its_own_manifest(tmp_path):
    Manifest(stage="prepare gsm8k").write(tmp_path)
    write_json(tmp_path / "base.manifest.json", {"stage": "import-hf", "inputs": {"hf/config.json": "1"}})
    assert origin_of(tmp_path / "base.nemo") == {"stage": "import-hf", "inputs": {"hf/config.json": "1"}}
    assert origin_of(tmp_path / "other.nemo") == {}


def test_without_a_manifest(tmp_path):
    write_json(tmp_path / "manifest.json", {"files": []})
    assert origin_of(tmp_path / "train.jsonl") == {}
