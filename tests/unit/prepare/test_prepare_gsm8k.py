import hashlib
import json

import pytest

from nemo_minordpo.core.gsm8k import PAPER_INSTRUCTION
from nemo_minordpo.prepare import gsm8k
from nemo_minordpo.prepare.build import BuildOptions
from nemo_minordpo.prepare.chat import Prompting
from nemo_minordpo.records import Manifest, PreferencePair
from tests.unit.prepare.templates import save_tokenizer

CHAT = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + CHAT


def _row(number: int, question: str | None = None) -> dict[str, str]:
    answer = f"She has {number}+1 = <<{number}+1={number + 1}>>{number + 1}.\nAll: <<2*3=6>>6.\n#### 6"
    return {"question": question or f"Mia has {number} eggs. How many?", "answer": answer}


def prepare_gsm8k(source, output, *, seed=1234, template="plain", tokenizer=None, system=None, **options):
    prompting = Prompting(template=template, tokenizer=tokenizer, system=system)
    return gsm8k.prepare_gsm8k(source, output, seed=seed, prompting=prompting, options=BuildOptions(**options))


def _write(path, rows):
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def _pairs(path):
    return [PreferencePair.from_json(line) for line in path.read_text().splitlines()]


@pytest.fixture
def source(tmp_path):
    return _write(tmp_path / "rows.jsonl", [_row(number) for number in range(1, 11)])


def test_plain_pairs(source, tmp_path):
    manifest = prepare_gsm8k(source, tmp_path / "out")
    pairs = _pairs(tmp_path / "out/train.jsonl")
    assert len(pairs) == 10
    assert pairs[0].prompt == f"{PAPER_INSTRUCTION} Mia has 1 eggs. How many?\n"
    assert pairs[0].chosen_response == "She has 1+1 = 2.\nAll: 6.\nSo the answer is: 6"
    assert pairs[0].rejected_response in [f"She has 1+1 = {n}.\nAll: 6.\nSo the answer is: 6" for n in (1, 3, 4)]
    assert manifest.counts == {
        "rows": 10,
        "pairs": 10,
        "rejected": 0,
        "train": 10,
        "validation": 0,
        "repeated_questions": 0,
    }
    assert manifest.inputs == {str(source): hashlib.sha256(source.read_bytes()).hexdigest()}
    assert Manifest.read(tmp_path / "out") == manifest
    assert (tmp_path / "out/rejected_rows.jsonl").read_text() == ""
    assert not (tmp_path / "out/validation.jsonl").exists()


def test_bad_rows_are_rejected_with_place_and_reason(tmp_path):
    rows = [
        _row(1),
        "",
        "{half",
        {"question": "Q?"},
        {"question": "Q?", "answer": "It is 5.\n#### 5"},
        {"question": "Q?", "answer": "<<2+3=5>>5"},
        _row(2),
    ]
    source = _write(tmp_path / "rows.jsonl", rows)
    manifest = prepare_gsm8k(source, tmp_path / "out", max_rejected=1)
    rejected = [json.loads(line) for line in (tmp_path / "out/rejected_rows.jsonl").read_text().splitlines()]
    assert [row["source"] for row in rejected] == [f"{source}:{number}" for number in (3, 4, 5, 6)]
    for row, reason in zip(rejected, ["invalid JSON", "'answer'", "no calculator mark", "no '####"], strict=True):
        assert reason in row["reason"]
    assert manifest.counts == {
        "rows": 6,
        "pairs": 2,
        "rejected": 4,
        "train": 2,
        "validation": 0,
        "repeated_questions": 0,
    }


@pytest.mark.parametrize(
    ("rows", "reason"),
    [(["{half", {"question": "Q?"}], r"none of the 2 rows.*\n.*rows.jsonl:1: invalid JSON"), ([], "no rows")],
)
def test_a_source_without_a_usable_row_is_refused(tmp_path, rows, reason):
    with pytest.raises(ValueError, match=reason):
        prepare_gsm8k(_write(tmp_path / "rows.jsonl", rows), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_missing_source_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no such file"):
        prepare_gsm8k(tmp_path / "none.jsonl", tmp_path / "out")


def test_a_pair_depends_only_on_the_seed_and_its_row(source, tmp_path):
    for name, options in {
        "a": {}, "b": {}, "first": {"limit": 3}, "other": {"seed": 5},
    }.items():  # fmt: skip
        prepare_gsm8k(source, tmp_path / name, **options)
    lines = source.read_text().splitlines()
    _write(tmp_path / "without.jsonl", ["", *lines[1:]])  # the first row is gone, the others keep their line numbers
    prepare_gsm8k(tmp_path / "without.jsonl", tmp_path / "without")
    pairs = {name: _pairs(tmp_path / name / "train.jsonl") for name in ("a", "b", "first", "other", "without")}
    assert pairs["a"] == pairs["b"]
    assert pairs["first"] == pairs["a"][:3]
    assert pairs["without"] == pairs["a"][1:]
    assert pairs["other"] != pairs["a"]


@pytest.mark.parametrize("seed", range(8))
def test_no_question_is_on_both_sides_of_the_split(tmp_path, seed):
    rows = [_row(number, f"Question {number % 6}?") for number in range(1, 31)]
    rows += [_row(number, f" question  {number}? ") for number in range(6)]  # the same questions, written differently
    source = _write(tmp_path / "rows.jsonl", [*rows, _row(8)])
    manifest = prepare_gsm8k(source, tmp_path / "out", num_validation=13, seed=seed)
    sides = [
        {" ".join(pair.prompt.lower().split()) for pair in _pairs(tmp_path / "out" / name)}
        for name in ("train.jsonl", "validation.jsonl")
    ]
    assert not sides[0] & sides[1]
    assert len(sides[0] | sides[1]) == 7
    assert (manifest.counts["train"], manifest.counts["validation"]) == (24, 13)


def test_the_split_depends_on_the_seed_and_keeps_the_order(source, tmp_path):
    held_out = {}
    for seed in (1, 2):
        prepare_gsm8k(source, tmp_path / str(seed), num_validation=4, seed=seed)
        held_out[seed] = [pair.prompt for pair in _pairs(tmp_path / str(seed) / "validation.jsonl")]
    order = [f"{PAPER_INSTRUCTION} {_row(number)['question']}\n" for number in range(1, 11)]
    assert len(held_out[1]) == 4
    assert held_out[1] == [prompt for prompt in order if prompt in held_out[1]]
    assert held_out[1] != held_out[2]


@pytest.mark.parametrize("num_validation", [10, 11])
def test_validation_leaves_pairs_for_training(source, tmp_path, num_validation):
    with pytest.raises(ValueError, match=f"num_validation is {num_validation}, but there are 10 pairs"):
        prepare_gsm8k(source, tmp_path / "out", num_validation=num_validation)
    prepare_gsm8k(source, tmp_path / "out", num_validation=9)


def test_chat_prompts_are_the_tokenizers_own(source, tmp_path):
    tokenizer = save_tokenizer(tmp_path / "tokenizer", CHAT)
    manifest = prepare_gsm8k(source, tmp_path / "out", template="chat", tokenizer=tokenizer, limit=1)
    (pair,) = _pairs(tmp_path / "out/train.jsonl")
    assert pair.prompt == f"<|user|>{PAPER_INSTRUCTION} Mia has 1 eggs. How many?\n<|assistant|>"
    assert str(tokenizer / "tokenizer.json") in manifest.inputs
    prepare_gsm8k(source, tmp_path / "system", template="chat", tokenizer=tokenizer, limit=1, system="Be brief.")
    (with_system,) = _pairs(tmp_path / "system/train.jsonl")
    assert with_system.prompt == "<|system|>Be brief.\n" + pair.prompt


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"template": "chat"}, "needs a tokenizer"),
        ({"template": "fancy"}, "'fancy'"),
        ({"system": "Be brief."}, "no use for system"),
        ({"num_validation": -1}, "num_validation is -1"),
        ({"limit": 0}, "limit is 0"),
    ],
)
def test_invalid_options_are_refused(source, tmp_path, options, reason):
    with pytest.raises(ValueError, match=reason):
        prepare_gsm8k(source, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_tokenizers_that_cannot_make_a_prompt_are_refused(source, tmp_path):
    chat = {"template": "chat", "tokenizer": save_tokenizer(tmp_path / "no_system", NO_SYSTEM)}
    prepare_gsm8k(source, tmp_path / "control", **chat)
    with pytest.raises(ValueError, match=r"cannot be used with a user turn with a system turn.*no system role"):
        prepare_gsm8k(source, tmp_path / "out", system="Be brief.", **chat)
    with pytest.raises(ValueError, match="has no chat template"):
        prepare_gsm8k(source, tmp_path / "out", template="chat", tokenizer=save_tokenizer(tmp_path / "bare", None))
    with pytest.raises(ValueError, match="no such tokenizer folder"):
        prepare_gsm8k(source, tmp_path / "out", template="chat", tokenizer=tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="cannot load a Hugging Face tokenizer"):
        prepare_gsm8k(source, tmp_path / "out", template="chat", tokenizer=tmp_path / "empty")
    with pytest.raises(ValueError, match="no use for tokenizer"):
        prepare_gsm8k(source, tmp_path / "out", tokenizer=tmp_path / "no_system")
    assert not (tmp_path / "out").exists()


def test_an_existing_output_is_replaced_only_on_request_and_as_a_whole(source, tmp_path):
    prepare_gsm8k(source, tmp_path / "out", num_validation=2)
    before = (tmp_path / "out/train.jsonl").read_bytes()
    with pytest.raises(ValueError, match="exists already"):
        prepare_gsm8k(source, tmp_path / "out")
    assert (tmp_path / "out/train.jsonl").read_bytes() == before
    prepare_gsm8k(source, tmp_path / "out", overwrite=True)
    assert len(_pairs(tmp_path / "out/train.jsonl")) == 10
    assert not (tmp_path / "out/validation.jsonl").exists()


def test_the_summary_shows_counts_reasons_and_a_pair(tmp_path, capsys):
    source = _write(tmp_path / "[b]rows.jsonl", [_row(1), "{half"])
    prepare_gsm8k(source, tmp_path / "out", max_rejected=0.5)
    shown = capsys.readouterr().out
    assert "2 rows: 1 pairs (1 train, 0 validation), 1 rejected" in shown
    assert f"rejected {source}:2: invalid JSON" in shown
    assert "--- rejected\nShe has 1+1 = " in shown
