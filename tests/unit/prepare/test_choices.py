import json

import pytest

from nemo_minordpo.prepare.build import BuildOptions
from nemo_minordpo.prepare.chat import Prompting
from nemo_minordpo.prepare.choices import prepare_choices, read_question
from tests.unit.prepare.templates import CHATML, save_tokenizer

ARC = {
    "id": "Mercury_1", "question": "Which is a gas? ", "answerKey": "C",
    "choices": {"text": ["iron", "wood", "air", "salt"], "label": ["A", "B", "C", "D"]},
}  # fmt: skip
NESTED = {
    "answerKey": "2",
    "question": {"stem": "Which is a gas?", "choices": [{"text": "iron", "label": "1"}, {"text": "air", "label": "2"}]},
}
HELLASWAG = {
    "ctx": "A man sits. [header] How to sit [title] Look for a chair.  he", "activity_label": "Sitting", "label": "1",
    "endings": ["flies.", "rests. [step] Sit down.", "sings.", "melts."],
}  # fmt: skip


def _prepare(folder, rows, **settings):
    source = folder / "rows.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = BuildOptions(max_rejected=1, overwrite=True)
    manifest = prepare_choices([str(source)], folder / "out", options=options, **settings)
    return [json.loads(line) for line in (folder / "out/train.jsonl").read_text().splitlines()], manifest


def test_the_right_option_against_a_wrong_one(tmp_path):
    rows = [ARC | {"question": f"Which is a gas, {number}?"} for number in range(60)]
    pairs, _ = _prepare(tmp_path, rows)
    assert pairs[7]["prompt"] == "Question: Which is a gas, 7?\nAnswer:"
    assert {pair["chosen_response"] for pair in pairs} == {" air"}
    assert {pair["rejected_response"] for pair in pairs} == {" iron", " wood", " salt"}
    assert pairs == _prepare(tmp_path, rows)[0]
    assert pairs != _prepare(tmp_path, rows, seed=2)[0]
    assert pairs[:20] == _prepare(tmp_path, rows[:20])[0]


def test_hellaswag_without_its_headings(tmp_path):
    (pair,), _ = _prepare(tmp_path, [HELLASWAG])
    assert pair["prompt"] == "Sitting: A man sits. How to sit. Look for a chair. he"
    assert pair["chosen_response"] == " rests. Sit down."
    assert pair["rejected_response"] in (" flies.", " sings.", " melts.")


@pytest.mark.parametrize(
    ("row", "right"),
    [
        (ARC, "air"),
        (NESTED, "air"),
        ({"question_stem": "Gas?", **{name: ARC[name] for name in ("choices", "answerKey")}}, "air"),
        (HELLASWAG | {"label": 3}, "melts."),
    ],
)
def test_layouts(row, right):
    question = read_question(row)
    assert question.options[question.right] == right


def test_chat_template(tmp_path):
    prompting = Prompting(template="chat", tokenizer=save_tokenizer(tmp_path / "hf", CHATML))
    (pair,), _ = _prepare(tmp_path, [ARC], prompting=prompting)
    assert pair["prompt"] == "<|im_start|>user\nWhich is a gas?<|im_end|>\n<|im_start|>assistant\n"
    assert pair["chosen_response"] == "air"


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({}, "missing field 'question'"),
        (ARC | {"answerKey": "E"}, "not among the options"),
        (ARC | {"answerKey": None}, "'answerKey' must be a string"),
        (ARC | {"choices": None}, "choices must be texts with labels"),
        (ARC | {"choices": [1]}, "choices must be texts with labels"),
        (ARC | {"choices": {"text": ["a"], "label": ["A", "B"]}}, "1 texts, but 2 labels"),
        (ARC | {"choices": {"text": [1, 2], "label": ["A", "C"]}}, "'text' must be a string"),
        (ARC | {"choices": {"text": ["air", "air"], "label": ["B", "C"]}}, "fewer than two different options"),
        (HELLASWAG | {"label": ""}, "no label"),
        (HELLASWAG | {"label": None}, "no label"),
        (HELLASWAG | {"label": True}, "no label"),
        (HELLASWAG | {"label": "4"}, "number 4 of 4"),
        (HELLASWAG | {"endings": "abcd"}, "endings must be a list"),
        (HELLASWAG | {"endings": [None, "b"]}, "'ending' must be a string"),
        (HELLASWAG | {"ctx": {}}, "'ctx' must be a string"),
    ],
)
def test_invalid_questions_are_rejected_with_the_reason(row, reason):
    with pytest.raises(ValueError, match=reason):
        read_question(row)
