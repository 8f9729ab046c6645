import json
from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nemo_minordpo.core.gsm8k import (
    Problem,
    chat_prompt,
    flexible_answer,
    gold_answer,
    paper_prompt,
    plain_prompt,
    response_from_answer,
    same_number,
    strict_answer,
)

ANSWER = "Ann has 48/2 = <<48/2=24>>24 pens.\nTogether: 48+24 = <<48+24=72>>72 pens.\n#### 72"


def test_prompt_is_the_papers_text():
    expected = (
        "You are a helpful assistant. Please answer follow question step by step and give final answer in a separate "
        "line using the brief format So the answer is: . Below is the question: How many?"
    )
    assert paper_prompt("How many?") == expected
    assert plain_prompt("How many?") == expected + "\n"


class _Template:
    """Stands in for a tokenizer: shows what it was asked to render."""

    def apply_chat_template(self, turns, *, add_generation_prompt, tokenize):
        assert (add_generation_prompt, tokenize) == (True, False)
        return "".join(f"[{turn['role']}] {turn['content']} " for turn in turns) + "[assistant]"


def test_chat_prompt_puts_the_paper_prompt_into_the_user_turn():
    assert chat_prompt("Q?", tokenizer=_Template(), system=None) == f"[user] {paper_prompt('Q?')} [assistant]"
    with_system = chat_prompt("Q?", tokenizer=_Template(), system="Be brief.")
    assert with_system == f"[system] Be brief. [user] {paper_prompt('Q?')} [assistant]"


def test_response_has_no_marks_and_the_brief_format():
    assert response_from_answer(ANSWER) == ("Ann has 48/2 = 24 pens.\nTogether: 48+24 = 72 pens.\nSo the answer is: 72")
    assert response_from_answer("#### 5") == "So the answer is: 5"
    assert response_from_answer("a < b << c\n#### 1,080") == "a < b << c\nSo the answer is: 1,080"


@pytest.mark.parametrize(
    ("answer", "gold"),
    [("#### 72", "72"), ("#### 1,080,000", "1080000"), ("x\n####-5", "-5"), ("#### $3.50", "3.5"), ("#### 20%", "20")],
)
def test_gold_answer(answer, gold):
    assert gold_answer(answer) == gold


@pytest.mark.parametrize(
    ("answer", "reason"),
    [("it is 5", "no '####"), ("#### five", "not a number"), ("####", "not a number"), ("#### 5 pens", "5 pens")],
)
def test_gold_answer_refuses(answer, reason):
    with pytest.raises(ValueError, match=reason):
        gold_answer(answer)
    with pytest.raises(ValueError, match=reason):
        response_from_answer(answer)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("So the answer is: 18", "18"),
        ("SO THE ANSWER IS 18.", "18"),
        ("The answer is: 18 dollars. She has 3 cats.", "18"),
        ("**So the answer is:** 18", "18"),
        ("So the answer is: **$1,234.50**", "1234.5"),
        (r"The answer is \(3\)", "3"),
        (r"The answer is: $\boxed{42}$", "42"),
        ("So the answer is: . 42", "42"),
        ("So the answer is:\n\n42", "42"),
        ("The answer is .5", "0.5"),
        ("The answer is -$5", "-5"),
        ("The answer is \u22123", "-3"),
        ("The answer is 007", "7"),
        ("The answer is 3. No: the answer is 4", "4"),
        ("The answer is 2 * 3 = 6", "6"),
        ("the answer is 12 apples / 4 = 3 apples. Check: 3 * 4 = 12", "3"),
        ("the answer is 2 x (3 + 1) = 8", "8"),
        ("the answer is 1 + 1 = 2 = 2", "2"),
        ("the answer is 18 (9 * 2 = 18, 3 + 4 = 7)", "18"),
        ("the answer is 18 = total", "18"),
        ("the answer is 6\n- 2 * 3 = 7", "6"),
        ("the answer is 12 boxes and 4 = x", "12"),
    ],
)
def test_strict_answer(text, number):
    assert strict_answer(text) == number


@pytest.mark.parametrize(
    "text",
    [
        "",
        "18",
        "So the answer is: eighteen",
        "So the answer is: . Below is the question: Ann has 3",
        "the answer is 12/4",
        "the answer is 5-10 minutes",
        "the answer is 2 x 3",
    ],
)
def test_no_strict_answer(text):
    assert strict_answer(text) is None


def test_a_last_statement_without_a_number_does_not_hide_the_one_before():
    assert strict_answer("So the answer is: 7\nSo the answer is: unclear") == "7"


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("3 + 4 = 7.", "7"),
        ("it costs $1,234.50", "1234.5"),
        ("10-3", "3"),
        ("down to -3", "-3"),
        ("lists 1,2,3", "3"),
        ("12,34", "34"),
        ("no number", None),
    ],
)
def test_flexible_answer(text, number):
    assert flexible_answer(text) == number


@pytest.mark.parametrize(
    ("a", "b", "same"),
    [("18", "18.0", True), ("-0", "0", True), ("18", "18.01", False), ("-3", "3", False), (None, "3", False)],
)
def test_same_number(a, b, same):
    assert same_number(a, b) is same
    assert same_number(b, a) is same


def test_no_answer_equals_no_answer_neither():
    assert same_number(None, None) is False


def test_same_number_is_exact():
    # Equal as floats, and equal when rounded to Decimal's 28 places.
    assert not same_number("1" + "0" * 40, "1" + "0" * 39 + "1")


@settings(deadline=None)  # the machine may be busy
@given(st.decimals(allow_nan=False, allow_infinity=False, places=3, min_value=-(10**12), max_value=10**12))
def test_any_number_is_read_back(number):
    written = f"{number:,}"
    read = strict_answer(f"2 + 2 = 4\nSo the answer is: {written}")
    assert read is not None
    assert Decimal(read) == number
    assert flexible_answer(f"It is {written}.") == read
    assert same_number(read, str(number))


@settings(deadline=None)  # the machine may be busy
@given(st.integers(-(10**9), 10**9), st.text(alphabet="abc 0123456789=+*<>\n.", max_size=60))
def test_response_states_the_gold_answer_whatever_the_steps(number, steps):
    answer = f"{steps}\n#### {number:,}"
    assert strict_answer(response_from_answer(answer)) == gold_answer(answer) == str(number)
    assert flexible_answer(response_from_answer(answer)) == str(number)


@settings(deadline=None)  # the machine may be busy
@given(st.text(alphabet="the answer is:=$*/x-.,0123456789\n", max_size=80))
def test_whatever_is_found_is_a_normalised_number(text):
    for found in (strict_answer(text), flexible_answer(text)):
        assert found is None or found == flexible_answer(found)


def test_problem_reads_its_two_keys():
    text = json.dumps({"question": "Q?", "answer": ANSWER, "source": "other keys stay unread"})
    assert Problem.from_json(text) == Problem(question="Q?", answer=ANSWER)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("{", "invalid JSON"),
        ("[]", "not list"),
        ("{}", r"missing field 'question' \(found: none\)"),
        ('{"question": "Q?"}', r"missing field 'answer' \(found: question\)"),
        ('{"question": 1, "answer": "#### 1"}', "'question' must be a string, not int"),
        ('{"question": " ", "answer": "#### 1"}', "empty field 'question'"),
        ('{"question": "Q?", "answer": "1"}', "no '####"),
        ('{"question": "\\ud83d", "answer": "#### 1"}', "surrogate"),
    ],
)
def test_problem_refuses(row, reason):
    with pytest.raises(ValueError, match=reason):
        Problem.from_json(row)
