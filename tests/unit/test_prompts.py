"""Manifests carry the prompt format from the pairs to the run to the exported model."""

import pytest

from nemo_minordpo.files import write_json, write_text
from nemo_minordpo.prompts import ways_of, ways_of_pairs, ways_of_run
from nemo_minordpo.records import Manifest

CHAT = {"template": "chat", "system": "Hi.", "date": "2024-03-09", "template_options": {"enable_thinking": False}}
PLAIN = {"template": "plain", "system": None, "date": None, "template_options": {}}


def _pairs(folder, **settings):
    Manifest(stage="prepare hf", settings={"seed": 1, "tokenizer": "hf", **settings}).write(folder)
    return folder / "train.jsonl"


def test_the_format_of_pairs_is_in_the_settings_of_prepare(tmp_path):
    assert ways_of(_pairs(tmp_path / "chat", **CHAT).parent) == [CHAT]
    # an old manifest, without dates and options
    assert ways_of(_pairs(tmp_path / "plain", template="plain", system=None).parent) == [PLAIN]


def test_each_format_of_several_files_is_listed_once(tmp_path):
    chat, plain, same = (_pairs(tmp_path / name, **way) for name, way in (("a", CHAT), ("b", PLAIN), ("c", CHAT)))
    write_text(tmp_path / "own.jsonl", "")
    assert ways_of_pairs([chat, chat.with_name("more.jsonl"), plain, same, tmp_path / "own.jsonl"]) == [CHAT, PLAIN]
    assert ways_of_pairs([tmp_path / "own.jsonl"]) == []


@pytest.mark.parametrize("output", [".", "model.nemo", "checkpoints/step_20"])
def test_the_format_of_a_model_is_that_of_its_run(tmp_path, output):
    Manifest(stage="train", prompts=[CHAT]).write(tmp_path / "run")
    assert ways_of_run(tmp_path / "run" / output) == [CHAT]
    assert ways_of(tmp_path / "run") == [CHAT]


def test_a_model_elsewhere_has_no_run(tmp_path):
    _pairs(tmp_path, **CHAT)
    assert ways_of_run(tmp_path / "base.nemo") == []


@pytest.mark.parametrize("content", ["{", "[]", "3", '{"files": []}', '{"stage": "train"}', '{"stage": null}'])
def test_manifests_without_a_prompt_format(tmp_path, content):
    write_text(tmp_path / "manifest.json", content)
    assert ways_of(tmp_path) == []
    assert ways_of_run(tmp_path) == []
    write_json(tmp_path / "binary/manifest.json", {})
    (tmp_path / "binary/manifest.json").write_bytes(b"\xff")
    assert ways_of(tmp_path / "binary") == []
