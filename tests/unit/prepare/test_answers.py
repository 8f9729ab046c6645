"""Pairs from a model's own answers."""

import json

import pytest

from nemo_minordpo.core.gsm8k import PAPER_INSTRUCTION
from nemo_minordpo.errors import UserError
from nemo_minordpo.prepare.answer_groups import ALL_RIGHT, ALL_WRONG, group_answers, matched
from nemo_minordpo.prepare.answers import prepare_answers
from nemo_minordpo.prepare.build import BuildOptions
from nemo_minordpo.prepare.chat import Prompting
from nemo_minordpo.prepare.rows import Row
from tests.unit.prepare.templates import CHATML, save_tokenizer

RIGHT = "1 + 1 = 2\nSo the answer is: 2"


def _sample(output, *, question="What is 1 + 1?", **more):
    return {
        "index": 0, "question": question, "output": output, "num_tokens": 3, "finished": True, "gold": "2",
        "strict": None, "flexible": None, "degenerate": None, "sample": 0,
    } | more  # fmt: skip


def _write(path, rows):
    path.parent.mkdir(exist_ok=True, parents=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def _prepare(folder, rows, *, max_rejected=0.0, **settings):
    options = BuildOptions(max_rejected=max_rejected, overwrite=True)
    manifest = prepare_answers([_write(folder / "a.jsonl", rows)], folder / "out", options=options, **settings)
    return [json.loads(line) for line in (folder / "out/train.jsonl").read_text().splitlines()], manifest


def _group(*answers):
    rows = [Row("a", number + 1, json.dumps(answer).encode()) for number, answer in enumerate(answers)]
    return group_answers(rows, rule="strict")


def test_the_closest_right_and_wrong_answers_become_a_pair(tmp_path):
    far, close = "I do not know. So the answer is: 7", "1 + 1 = 3\nSo the answer is: 3"
    (pair,), manifest = _prepare(tmp_path, [_sample(far), _sample(RIGHT), _sample(close)])
    assert pair == {
        "prompt": f"{PAPER_INSTRUCTION} What is 1 + 1?\n", "chosen_response": RIGHT, "rejected_response": close,
        "chosen_reward": None, "rejected_reward": None,
        "source": f"{tmp_path}/a.jsonl:2", "rejected_source": f"{tmp_path}/a.jsonl:3",
    }  # fmt: skip
    assert manifest.counts["right answers"] == 1
    assert manifest.counts["wrong answers"] == 2
    (pair,), _ = _prepare(tmp_path, [_sample(far), _sample(RIGHT), _sample(close)], matching="farthest")
    assert pair["rejected_response"] == far


def test_questions_without_both_kinds_are_listed_and_no_fault(tmp_path, capsys):
    rows = [
        _sample(RIGHT, question="a"), _sample("So the answer is: 3", question="a"),
        _sample(RIGHT, question="b"), _sample("So the answer is: 2", question="b"),
        _sample("So the answer is: 4", question="c"), _sample("", question="c"),
        _sample("So the answer is: 5", question="d", finished=False),
    ]  # fmt: skip
    with pytest.raises(UserError, match="1 of 4 rows"):  # d
        _prepare(tmp_path, rows)
    pairs, manifest = _prepare(tmp_path, rows, max_rejected=0.3)
    assert len(pairs) == 1
    assert manifest.rejected == {ALL_RIGHT: 1, ALL_WRONG: 1, "no answer is finished": 1}
    names = ("answers", "right answers", "wrong answers", "unfinished answers", "questions")
    assert [manifest.counts[name] for name in names] == [7, 3, 2, 2, 4]
    listed = [json.loads(line) for line in (tmp_path / "out/rejected_rows.jsonl").read_text().splitlines()]
    assert listed[0] == {"source": f"{tmp_path}/a.jsonl:3", "reason": ALL_RIGHT}
    assert (
        "7 answers to 4 questions: 3 right, 2 wrong, 2 unfinished or empty; 1 questions have" in capsys.readouterr().err
    )


def test_no_answer_is_in_two_pairs():
    right = [f"{number} apples. So the answer is: 2" for number in range(3)]
    wrong = [f"{number} apples. So the answer is: 3" for number in range(2)]
    (group,), faulty, _ = _group(*map(_sample, [*right, *wrong, right[0]]))
    assert not faulty
    pairs = list(matched(group, matching="closest", number=9, seed=1))
    assert [(one.text, other.text) for one, other in pairs] == list(zip(right[:2], wrong, strict=True))
    assert len(list(matched(group, matching="closest", number=1, seed=1))) == 1
    drawn = [list(matched(group, matching="random", number=2, seed=seed)) for seed in range(9)]
    assert len({str(one) for one in drawn}) > 1
    assert drawn[3] == list(matched(group, matching="random", number=2, seed=3))


def test_rows_of_others(tmp_path):
    rows = [
        {"prompt": "Q: 1 + 1?", "response": " two", "correct": True, "note": "x"},
        {"prompt": "Q: 1 + 1?", "response": " three", "correct": 0},
    ]
    (pair,), manifest = _prepare(tmp_path, rows)
    assert [pair[name] for name in ("prompt", "chosen_response", "rejected_response")] == [
        "Q: 1 + 1?",
        " two",
        " three",
    ]
    assert manifest.unread == {"note": 1}
    gold = [{"query": "1 + 999?", "completion": f"The answer is {one}", "gold": "1,000"} for one in (1000, 7)]
    (pair,), _ = _prepare(tmp_path, gold)
    assert pair["chosen_response"] == "The answer is 1000"
    boxed = [{"query": "1 + 999?", "completion": rf"\boxed{{{one}}}", "gold": 1000} for one in (1000, 7)]
    (pair,), _ = _prepare(tmp_path, boxed, rule="flexible")
    assert pair["chosen_response"] == r"\boxed{1000}"
    with pytest.raises(UserError, match="none of the 1 rows gives a pair"):  # "answer is" is nowhere
        _prepare(tmp_path, boxed)


def test_chat_prompts(tmp_path):
    prompting = Prompting(template="chat", tokenizer=save_tokenizer(tmp_path / "hf", CHATML))
    (pair,), _ = _prepare(tmp_path, [_sample(RIGHT), _sample("So the answer is: 1")], prompting=prompting)
    begin, end = "<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n"
    assert pair["prompt"] == f"{begin}{PAPER_INSTRUCTION} What is 1 + 1?{end}"
    rows = [{"prompt": "1 + 1?", "output": text, "correct": text == "2"} for text in "23"]
    (pair,), _ = _prepare(tmp_path, rows, prompting=prompting)
    assert pair["prompt"] == f"{begin}1 + 1?{end}"


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"question": "a"}, "no column output, response, completion, generation"),
        ({"output": "a"}, "no column question, query, problem, prompt"),
        ({"question": "a", "output": "b"}, "no verdict"),
        ({"question": "a", "output": "b", "correct": "yes"}, "'correct' must be true or false"),
        ({"question": "a", "output": "b", "gold": "many"}, "not a number after"),
        ({"question": "a", "output": 3, "correct": True}, "'output' must be a string"),
        ({"question": " ", "output": "b", "correct": True}, "empty field 'question'"),
        ({"question": "a", "output": "b", "correct": 1, "rejected_response": "c"}, "this is a pair"),
        (_sample(RIGHT) | {"correct": False}, "called right and wrong"),
        ([], "a JSON object was expected"),
    ],
)
def test_rows_that_cannot_be_used_are_counted(tmp_path, row, reason):
    good = [_sample(RIGHT), _sample("So the answer is: 1")]
    with pytest.raises(UserError, match=reason):
        _prepare(tmp_path, [*good, row])
    pairs, _ = _prepare(tmp_path, [*good, row], max_rejected=0.5)
    assert len(pairs) == 1


def test_a_column_with_meaning_stops_the_build(tmp_path):
    rows = [_sample(RIGHT, system="Be brief."), _sample("So the answer is: 1")]
    with pytest.raises(UserError, match="system"):
        _prepare(tmp_path, rows)
    pairs, _ = _prepare(tmp_path, rows, ignore_columns=["system"])
    assert len(pairs) == 1


def test_pairs_ask_as_the_answers_were_asked(tmp_path):
    settings = {"template": "chat", "system": None, "date": "2026-01-02", "template_options": {}}
    _write(tmp_path / "manifest.json", [{"stage": "evaluate", "settings": settings}])
    rows = [_sample(RIGHT), _sample("So the answer is: 1")]
    with pytest.raises(UserError, match="template: chat there, plain now"):
        _prepare(tmp_path, rows)
    template = "{{ strftime_now('%Y-%m-%d') }}" + CHATML
    prompting = Prompting(template="chat", tokenizer=save_tokenizer(tmp_path / "hf", template))
    (pair,), manifest = _prepare(tmp_path, rows, prompting=prompting)
    assert pair["prompt"].startswith("2026-01-02<|im_start|>")
    assert manifest.settings["date"] == "2026-01-02"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rule": "loose"}, "rule is 'loose'"),
        ({"matching": "best"}, "matching is 'best'"),
        ({"pairs_per_question": 0}, "pairs_per_question is 0"),
    ],
)
def test_bad_options(tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        _prepare(tmp_path, [_sample(RIGHT)], **options)


def test_the_pairs_do_not_depend_on_the_number_of_processes(tmp_path, monkeypatch):
    monkeypatch.setattr("nemo_minordpo.prepare.build.CHUNK_ROWS", 2)
    rows = [_sample(f"So the answer is: {one}", question=f"q{number}") for number in range(12) for one in (2, 3)]
    source = _write(tmp_path / "a.jsonl", rows)
    for workers in (1, 2):
        prepare_answers([source], tmp_path / f"{workers}", options=BuildOptions(workers=workers, num_validation=3))
    for name in ("train.jsonl", "validation.jsonl"):
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes() != b""
