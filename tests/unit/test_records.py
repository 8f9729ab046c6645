"""Records and their files."""

import hashlib
import json
from dataclasses import dataclass

import pytest

from nemo_minordpo.checked_json import parse_json
from nemo_minordpo.errors import UserError
from nemo_minordpo.files import read_lines, refuse_existing, sha256_of_file, write_json, write_jsonl, write_text
from nemo_minordpo.records import Manifest, PreferencePair, StepMetrics

PAIR = {"prompt": "2 + 2?", "chosen_response": "4", "rejected_response": "5"}


def test_a_pair_is_read_with_its_rewards_and_without_other_keys():
    pair = PreferencePair.from_json(json.dumps({**PAIR, "chosen_reward": 1, "id": 7}))
    assert pair == PreferencePair(prompt="2 + 2?", chosen_response="4", rejected_response="5", chosen_reward=1)
    assert pair.rejected_reward is None


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "invalid JSON"),
        ("", "invalid JSON"),
        ("[]", "a JSON object was expected, not list"),
        ('"text"', "a JSON object was expected, not str"),
        ("{}", r"missing field 'prompt' \(found: none\)"),
        ({"prompt": "a", "chosen": "b"}, r"missing field 'chosen_response' \(found: chosen, prompt\)"),
        ({**PAIR, "rejected_response": None}, "field 'rejected_response' must be a string, not NoneType"),
        ({**PAIR, "prompt": ["a"]}, "field 'prompt' must be a string, not list"),
        ({**PAIR, "chosen_response": " \n"}, "empty field 'chosen_response'"),
        ({**PAIR, "rejected_response": "4"}, "are equal"),
        ({**PAIR, "chosen_reward": "1"}, "field 'chosen_reward' must be a number, not str"),
        ({**PAIR, "chosen_reward": float("nan")}, "field 'chosen_reward' must be a finite number, not nan"),
        ({**PAIR, "rejected_reward": -float("inf")}, "field 'rejected_reward' must be a finite number, not -inf"),
        ({**PAIR, "rejected_reward": 10**400}, "field 'rejected_reward' must be a finite number"),
        ({**PAIR, "rejected_reward": True}, "field 'rejected_reward' must be a number, not bool"),
    ],
)
def test_an_invalid_pair_is_refused_with_the_reason(text, reason):
    with pytest.raises(ValueError, match=reason):
        PreferencePair.from_json(text if isinstance(text, str) else json.dumps(text))


def test_a_manifest_is_read_as_it_was_written(tmp_path):
    manifest = Manifest(stage="prepare", inputs={"a.jsonl": "00"}, settings={"seed": 1}, counts={"pairs": 2})
    manifest.write(tmp_path)
    assert Manifest.read(tmp_path) == manifest
    assert manifest.created.endswith("+00:00")
    assert "torch" in manifest.packages


def test_step_metrics_are_read_as_they_were_written(tmp_path):
    step = StepMetrics(split="train", step=3, epoch=0, consumed_pairs=24, values={"loss": 0.5})
    assert write_jsonl(tmp_path / "metrics.jsonl", [step]) == 1
    ((number, line),) = read_lines(tmp_path / "metrics.jsonl")
    assert (number, StepMetrics.from_json(line)) == (1, step)


def test_line_numbers_match_an_editors_and_blank_lines_are_skipped(tmp_path):
    path = tmp_path / "lines"
    path.write_text("\na\n  \nb")
    assert list(read_lines(path)) == [(2, "a\n"), (4, "b")]


def test_unreadable_files_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"lines: no such file"):
        list(read_lines(tmp_path / "lines"))
    with pytest.raises(ValueError, match=r"no such file"):
        list(read_lines(tmp_path))  # a folder
    (tmp_path / "lines").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match=r"lines:1: not UTF-8 text"):
        list(read_lines(tmp_path / "lines"))


@dataclass
class Row:
    name: str


def test_jsonl_preserves_order_and_letters(tmp_path):
    assert write_jsonl(tmp_path / "new" / "rows.jsonl", [Row("\u00e9"), {"n": 1}, [2]]) == 3
    assert (tmp_path / "new" / "rows.jsonl").read_text(encoding="utf-8") == '{"name": "\u00e9"}\n{"n": 1}\n[2]\n'


def test_a_file_exists_whole_or_not_at_all(tmp_path):
    path = tmp_path / "rows.jsonl"
    write_text(path, "before\n")

    def rows():
        yield {"n": 1}
        raise RuntimeError("the source broke off")

    with pytest.raises(RuntimeError):
        write_jsonl(path, rows())
    assert path.read_text() == "before\n"


def test_json_is_replaced_without_leaving_other_files(tmp_path):
    write_json(tmp_path / "a.json", {"a": 1})
    write_json(tmp_path / "a.json", {"a": 2})
    assert [item.name for item in tmp_path.iterdir()] == ["a.json"]
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": 2}


def test_sha256_is_that_of_the_content(tmp_path):
    content = bytes(range(256)) * 9000  # more than one block of any reader
    (tmp_path / "a").write_bytes(content)
    assert sha256_of_file(tmp_path / "a") == hashlib.sha256(content).hexdigest()


def test_existing_output_is_refused_without_overwrite(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    for free in ("missing", "empty"):
        refuse_existing(tmp_path / free, overwrite=False)
    for taken in (tmp_path / "file", tmp_path):
        refuse_existing(taken, overwrite=True)
        with pytest.raises(ValueError, match=r"exists already: choose another path, or pass --overwrite"):
            refuse_existing(taken, overwrite=False)


@pytest.mark.parametrize(
    "text", ["{", "[" * 100_000 + "]" * 100_000, '{"a": ' + "9" * 5000 + "}"], ids=["torn", "deep", "digits"]
)
def test_json_that_python_cannot_read_is_a_user_error(text):
    with pytest.raises(UserError, match=r"^invalid JSON: "):
        parse_json(text)
    assert parse_json('{"a": 1}') == {"a": 1}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "no such file"),
        (b"{", "invalid JSON"),
        (b"[1]", "a JSON object was expected, not list"),
        (b"\xff", "'utf-8' codec can't decode"),
        (b'{"stage": "x", "odd": 1}', "not a manifest as `minordpo` writes it"),
    ],
)
def test_a_damaged_manifest_is_a_user_error(tmp_path, content, reason):
    if content is not None:
        (tmp_path / "manifest.json").write_bytes(content)
    with pytest.raises(UserError) as error:
        Manifest.read(tmp_path)
    assert str(error.value).startswith(f"{tmp_path / 'manifest.json'}: {reason}")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("step", "3"), ("step", None), ("step", 2.0), ("step", 1 << 64), ("split", 3), ("split", "\ud800"),
        ("values", [0.5]), ("values", {"\udfff": 1.0}),
    ],
)  # fmt: skip
def test_a_record_with_an_invalid_field_is_refused(name, value):
    fields = {"split": "train", "step": 3, "epoch": 0, "consumed_pairs": 24, "values": {"loss": 0.5}}
    assert StepMetrics.from_json(json.dumps(fields)).step == 3
    with pytest.raises(ValueError, match=f"field '{name}' (has|contains)"):
        StepMetrics.from_json(json.dumps(fields | {name: value}))
