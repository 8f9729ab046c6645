"""Few-shot to zero-shot: the question is certain, or the row is rejected."""

import hashlib
import json
import re
import sqlite3

import pytest

from nemo_minordpo.core.gsm8k import plain_prompt
from nemo_minordpo.prepare.build import BuildOptions
from nemo_minordpo.prepare.chat import Prompting
from nemo_minordpo.prepare.metamath import prepare_metamath, question_behind_marker
from nemo_minordpo.prepare.metamathqa import INDEX_NAME
from tests.unit.prepare.templates import QWEN, save_tokenizer

ORIGINALS = ["Ann has {n} eggs. How many?", "What is\n\n{n} + $\\sqrt{{4}}$?", "Ben walks {n} miles. How far?"]


def _qa(number, *, rewrite=0):
    original = ORIGINALS[number % 3].format(n=number)
    query = original if rewrite == 0 else f"{original} (Rewrite {rewrite}.)"
    total = number + rewrite
    response = f"We count {number} + {rewrite} = {total}.\n#### {total}\nThe answer is: {total}"
    return {"query": query, "response": response, "type": "MATH_Rephrased", "original_question": original}


def _row(qa, *, shots=(), cue="\nAnswer:", squeeze=False):
    solved = [f"Question: {shot['query']}\nAnswer: {shot['response']}" for shot in shots]
    chosen = " ".join(qa["response"].split()) if squeeze else qa["response"]
    return {
        "prompt": "\n\n".join([*solved, f"Question: {qa['query']}{cue}"]),
        "chosen": chosen,
        "rejected": chosen.replace("= ", "= 1", 1),
    }


@pytest.fixture
def qa():
    return [_qa(number, rewrite=rewrite) for number in range(12) for rewrite in range(4)]


def _write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def _prepare(
    tmp_path, rows, *, qa=None, name="out", prompting=None, seed=1, keep_few_shot=False, marker=None, **options
):
    options = BuildOptions(**{"max_rejected": 1.0} | options)
    given = None if qa is None else [_write(tmp_path / "qa.jsonl", qa)]
    return prepare_metamath(
        [_write(tmp_path / "rows.jsonl", rows)], tmp_path / name, metamathqa=given, marker=marker, seed=seed,
        prompting=prompting or Prompting(), keep_few_shot=keep_few_shot, options=options,
    )  # fmt: skip


def _lines(tmp_path, name="train", folder="out"):
    path = tmp_path / folder / f"{name}.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("how", ["join", "marker"])
def test_prompts_become_zero_shot(tmp_path, qa, how):
    rows = [_row(one, shots=qa[:3] if number % 2 else ()) for number, one in enumerate(qa)]
    given = {"qa": qa} if how == "join" else {"marker": "Question: "}
    manifest = _prepare(tmp_path, rows, **given)
    pairs = _lines(tmp_path)
    assert manifest.counts["pairs"] == len(qa) == 48
    for pair, one, row in zip(pairs, qa, rows, strict=True):
        assert pair["prompt"] == plain_prompt(one["query"])
        assert (pair["chosen_response"], pair["rejected_response"]) == (row["chosen"], row["rejected"])
        assert pair["original_prompt_sha256"] == hashlib.sha256(row["prompt"].encode()).hexdigest()
    assert [pair["source"] for pair in pairs] == [f"{tmp_path}/rows.jsonl:{number}" for number in range(1, 49)]
    # When joined, all rewrites of a question count as one question.
    assert manifest.counts["repeated_questions"] == (36 if how == "join" else 0)


def test_rewrites_of_a_question_stay_on_one_side(tmp_path, qa):
    for seed in range(4):
        _prepare(tmp_path, [_row(one) for one in qa], qa=qa, num_validation=12, name=f"out{seed}", seed=seed)
        sides = [
            {pair["prompt"].split(" (Rewrite")[0].strip() for pair in _lines(tmp_path, side, f"out{seed}")}
            for side in ("train", "validation")
        ]
        assert [len(side) for side in sides] == [9, 3]
        assert not sides[0] & sides[1]


@pytest.mark.parametrize(
    "cue", ["", "\n", "\nAnswer:", "\n\n### Response:", " A: Let's think step by step.", "\n**Solution:**\n"]
)
def test_cues_after_the_question(tmp_path, qa, cue):
    _prepare(tmp_path, [_row(one, shots=qa[:2], cue=cue, squeeze=True) for one in qa[10:14]], qa=qa)
    assert [pair["prompt"] for pair in _lines(tmp_path)] == [plain_prompt(one["query"]) for one in qa[10:14]]


def test_the_longest_matching_question_wins(tmp_path):
    answer = "It is 1 + 1 = 2.\nThe answer is: 2"
    queries = ["How many?", "Ann has an egg and buys one. How many?", "Ben has 9. How many?"]
    qa = [{"query": query, "response": answer, "original_question": query} for query in queries]
    row = _row({"query": queries[1], "response": answer})
    _prepare(tmp_path, [row], qa=qa)
    assert [pair["prompt"] for pair in _lines(tmp_path)] == [plain_prompt(queries[1])]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"chosen": "It is 3.\nThe answer is: 3"}, "the chosen response is not in MetaMathQA"),
        ({"prompt": "Question: Something else?\nAnswer:"}, "the prompt does not end with the question"),
        (
            {"prompt": "Question: Ann has 0 eggs. How many? And why?\nAnswer:"},
            "the prompt does not end with the question",
        ),
        (
            {"prompt": "Question: DiAnn has 0 eggs. How many?"},
            "the prompt does not end",
        ),
        ({"rejected": _qa(0)["response"]}, "are equal"),
        ({"prompt": None}, "'prompt' must be a string"),
        ({"rejected": " "}, "empty field 'rejected'"),
    ],
)
def test_joining_fails_closed(tmp_path, qa, change, reason):
    assert _qa(0)["query"] == "Ann has 0 eggs. How many?"
    _prepare(tmp_path, [_row(qa[0]) | change, _row(qa[5])], qa=qa)
    (rejected,) = _lines(tmp_path, "rejected_rows")
    assert reason in rejected["reason"]
    assert len(_lines(tmp_path)) == 1


@pytest.mark.parametrize(
    ("prompt", "reason"),
    [
        ("Ann has 1 egg. How many?", "no marker at the start of a line"),
        ("So the Question: How many?", "no marker at the start of a line"),
        ("Question: How many?\nAnswer: 3\n\nQuestion:  \nAnswer:", "nothing follows the last marker"),
        ("Question: A?\nAnswer: The answer is: 3\n\nAnd now a longer one.", "a solved question"),
        ("Question: A?\n#### 3\nB?", "a solved question"),
        ("Question: A? Question: B?", "a second marker"),
        ("Question: A? It is three and four. B?", "contains the chosen response"),
        ("Question: " + "x" * 5000, "question too long"),
    ],
)
def test_the_marker_fails_closed(prompt, reason):
    with pytest.raises(ValueError, match=reason):
        question_behind_marker(prompt, "It is three and four.", marker=re.compile("Question:"))


def test_the_question_after_a_marker_may_have_blank_lines():
    prompt = "Q1: Old?\nA: 3\n\nQ2: Find the matrix A:\n\n  1 2\n\nwith A = 3.\n A:"
    question = question_behind_marker(prompt, "It is 3.", marker=re.compile(r"Q\d+:"))
    assert question == "Find the matrix A:\n\n  1 2\n\nwith A = 3."


def test_prompts_can_be_left_unchanged_and_are_counted(tmp_path, qa):
    rows = [_row(qa[0]), _row(qa[1]) | {"prompt": "Other?"}, _row(qa[2]) | {"rejected": 3}]
    manifest = _prepare(tmp_path, rows, qa=qa, keep_few_shot=True)
    assert [pair["prompt"] for pair in _lines(tmp_path)] == [plain_prompt(qa[0]["query"]), "Other?"]
    assert manifest.counts["note: the question was not found: the prompt was left unchanged"] == 1
    assert manifest.counts["rejected"] == 1


def test_more_rows_without_a_question_than_allowed_are_refused(tmp_path, qa):
    rows = [_row(one) for one in qa]
    rows[7]["prompt"] = "Other?"
    for keep, what in ((False, "cannot be used,"), (True, "cannot be used or are left unchanged,")):
        with pytest.raises(
            ValueError, match=rf"1 of 48 rows \(2.1%\) {what}.*\n  1 x .*jsonl:8: the prompt does not end"
        ):
            _prepare(tmp_path, rows, qa=qa, max_rejected=0.02, keep_few_shot=keep)
        (line,) = (tmp_path / ".out.partial/rejected_rows.jsonl").read_text().splitlines()
        assert json.loads(line)["source"].endswith("rows.jsonl:8")


def test_damaged_rows_of_metamathqa_are_counted(tmp_path, qa):
    broken = [{"query": "Q"}, {"query": 3, "response": "R"}, []]
    manifest = _prepare(tmp_path, [_row(qa[0])], qa=[*broken, *qa])
    assert (manifest.counts["metamathqa_rows"], manifest.counts["metamathqa_rows_unusable"]) == (48, 3)
    with pytest.raises(ValueError, match="none of its 3 rows is usable"):
        _prepare(tmp_path, [_row(qa[0])], qa=broken, name="other")


def test_samples_before_and_after_are_shown(tmp_path, qa, capsys):
    _prepare(tmp_path, [_row(one, shots=qa[:8]) for one in qa], qa=qa)
    shown = capsys.readouterr().out
    assert shown.count("--- a prompt before") == shown.count("--- after") == 5
    assert "characters] ..." in shown
    assert f"--- after\n{plain_prompt(qa[0]['query'])}" in shown


def test_chat_template(tmp_path, qa):
    tokenizer = save_tokenizer(tmp_path / "hf", QWEN)
    _prepare(tmp_path, [_row(qa[0])], qa=qa, prompting=Prompting(template="chat", tokenizer=tokenizer))
    (pair,) = _lines(tmp_path)
    turn = plain_prompt(qa[0]["query"]).strip()
    assert pair["prompt"].endswith(f"<|im_start|>user\n{turn}<|im_end|>\n<|im_start|>assistant\n")


def test_exactly_one_way_must_be_chosen_and_the_marker_must_be_valid(tmp_path, qa):
    with pytest.raises(
        ValueError, match=r"--metamathqa .* or --marker(.|\n)*ends with:\nQuestion: Ann has 0 eggs. How many\?\nAnswer:"
    ):
        _prepare(tmp_path, [_row(qa[0])])
    with pytest.raises(ValueError, match="choose one way"):
        _prepare(tmp_path, [_row(qa[0])], qa=qa, marker="Question:")
    with pytest.raises(ValueError, match="not a regular expression"):
        _prepare(tmp_path, [_row(qa[0])], marker="(Question")
    with pytest.raises(ValueError, match="matches everywhere"):
        _prepare(tmp_path, [_row(qa[0])], marker="x*")


def test_an_interrupted_index_is_built_again(tmp_path, qa):
    (tmp_path / ".out.partial").mkdir()
    with sqlite3.connect(tmp_path / ".out.partial" / INDEX_NAME) as connection:
        connection.execute("CREATE TABLE response (digest INTEGER)")
    assert _prepare(tmp_path, [_row(qa[0])], qa=qa).counts["metamathqa_rows"] == 48
