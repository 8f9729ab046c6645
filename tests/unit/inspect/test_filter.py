"""--keep and --drop: the lines that stay are the same bytes, and every other pair is named with its rule."""

import json

import pytest

from nemo_minordpo.errors import UserError
from nemo_minordpo.inspect.kinds import FLAGS, MEASURES
from nemo_minordpo.inspect.rules import parse_rule
from nemo_minordpo.inspect.run import inspect_pairs
from nemo_minordpo.prompts import ways_of
from nemo_minordpo.records import Manifest
from tests.unit.inspect.test_inspect import clean, write

LINES = [
    b'{"prompt":"A ?", "chosen_response" : "one of the two", "rejected_response":"One of the two","extra":[1,  2]}\r\n',
    b'{"rejected_response": "no", "prompt": "B?", "chosen_response": "\\u00e9t\\u00e9 \xc3\xa9"}\n',
    b"not a pair\n",
    b"\n",
    b'{"prompt": "C?", "chosen_response": "I cannot help with that.", "rejected_response": "Take the other one then."}',
]


def written(folder, **rules):
    path = folder / "pairs" / "train.jsonl"
    path.parent.mkdir()
    path.write_bytes(b"".join(LINES))
    _, manifest = inspect_pairs([str(path)], output=folder / "out", workers=1, **rules)
    rejected = [json.loads(line) for line in (folder / "out/rejected_rows.jsonl").read_text().splitlines()]
    return path, (folder / "out/train.jsonl").read_bytes(), rejected, manifest


def test_lines_stay_as_they_are(tmp_path):
    path, kept, rejected, manifest = written(tmp_path, drop=["refusal"])
    assert kept == LINES[0] + LINES[1]
    assert [row["source"] for row in rejected] == [f"{path}:3", f"{path}:5"]
    assert rejected[0]["reason"].startswith("not a pair: invalid JSON")
    assert rejected[1]["reason"] == "--drop refusal"
    assert manifest.counts == {"pairs": 3, "invalid_lines": 1, "kept": 2, "dropped": 1}
    assert manifest.rejected == {"--drop refusal": 1, "not a pair": 1}
    assert manifest.settings["drop"] == ["refusal"]
    assert Manifest.read(tmp_path / "out").rejected == manifest.rejected


def test_a_reason_has_the_value(tmp_path):
    _, kept, rejected, manifest = written(tmp_path, drop=["edit_distance<0.2"], keep=["chosen_characters >= 6"])
    assert kept == LINES[4]
    assert rejected[0]["reason"] == "--drop edit_distance<0.2: it is 0.0714286"
    assert rejected[1]["reason"] == "not --keep chosen_characters>=6: it is 5"
    assert manifest.rejected == {"--drop edit_distance<0.2": 1, "not --keep chosen_characters>=6": 1, "not a pair": 1}


def test_several_rules_and_the_last_file(tmp_path):
    files = [
        write(tmp_path / "in" / name, [clean(number), clean(number + 1)])
        for number, name in enumerate(["a.jsonl", "b.jsonl"])
    ]
    inspect_pairs([str(file) for file in files], output=tmp_path / "out", drop=["duplicate", "refusal"], workers=1)
    assert (tmp_path / "out/a.jsonl").read_bytes() == files[0].read_bytes()
    assert (tmp_path / "out/b.jsonl").read_bytes() == files[1].read_bytes().splitlines(keepends=True)[1]
    (row,) = map(json.loads, (tmp_path / "out/rejected_rows.jsonl").read_text().splitlines())
    assert row == {"source": f"{files[1]}:1", "reason": f"--drop duplicate: {files[0]}:2"}


@pytest.mark.parametrize("rules", [{}, {"drop": ["refusal"]}], ids=["report", "filter"])
def test_the_prompt_format_is_passed_on(tmp_path, rules):
    path = write(tmp_path / "pairs" / "train.jsonl", [clean(0), clean(1)])
    way = {"template": "chat", "system": "Be brief.", "date": None, "template_options": {"enable_thinking": False}}
    Manifest(stage="prepare hf", settings=way | {"tokenizer": "hf/base"}).write(path.parent)
    assert ways_of(path.parent) == [way]
    inspect_pairs([str(path)], output=tmp_path / "out", workers=1, **rules)
    assert ways_of(tmp_path / "out") == [way]
    inspect_pairs([str(path)], output=tmp_path / "again", workers=1, **rules)
    assert ways_of(tmp_path / "again") == [way]


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ("edit_distanc<0.1", "'edit_distanc' is unknown\nmeasures: edit_distance, .*\nflags: duplicate, "),
        ("edit_distance", "is a measure: compare it"),
        ("refusal>0.5", "is a flag: leave out the number"),
        ("edit_distance<abc", "not a finite number"),
        ("edit_distance<nan", "not a finite number"),
        ("edit_distance==1", "write a flag"),
        ("__import__('os')", "write a flag"),
        ("", "write a flag"),
        ("ches>1", "known only with --model"),
    ],
)
def test_a_wrong_rule_is_refused(rule, message):
    with pytest.raises(UserError, match=f"(?s){message}"):
        parse_rule(rule, known={"edit_distance", "refusal"})


def test_every_name_is_a_rule():
    known = {*MEASURES, *FLAGS}
    assert len(known) == len(MEASURES) + len(FLAGS)
    for name in MEASURES:
        assert str(parse_rule(f" {name} <= -1.50 ", known=known)) == f"{name}<=-1.5"
    for name in FLAGS:
        assert str(parse_rule(name, known=known)) == name


def test_what_would_be_lost_is_refused(tmp_path):
    path = write(tmp_path / "in" / "pairs.jsonl", [clean(0), clean(1)])
    same = write(tmp_path / "other" / "pairs.jsonl", [clean(2)])
    with pytest.raises(UserError, match="name their folder"):
        inspect_pairs([str(path)], drop=["refusal"])
    with pytest.raises(UserError, match="leave no pair"):
        inspect_pairs([str(path)], output=tmp_path / "none", keep=["refusal"], workers=1)
    assert not (tmp_path / "none").exists()
    with pytest.raises(UserError, match=r"named pairs\.jsonl"):
        inspect_pairs([str(path), str(same)], output=tmp_path / "twice", drop=["refusal"], workers=1)
    with pytest.raises(UserError, match="contains pairs to inspect"):
        inspect_pairs([str(path)], output=path.parent, overwrite=True, workers=1)
    with pytest.raises(UserError, match="not written by"):
        inspect_pairs([str(path)], output=same.parent, overwrite=True, workers=1)
    inspect_pairs([str(path)], output=tmp_path / "out", drop=["refusal"], workers=1)
    with pytest.raises(UserError, match="exists already"):
        inspect_pairs([str(path)], output=tmp_path / "out", workers=1)
    inspect_pairs([str(path)], output=tmp_path / "out", workers=1, overwrite=True)
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["inspect.html", "manifest.json", "pairs.csv"]
