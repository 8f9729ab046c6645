import json
from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nemo_minordpo.core.gsm8k import (
    Problem,
    chat_turns,
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


def test_a_chat_model_is_asked_with_the_papers_prompt_as_the_users_turn():
    user = {"role": "user", "content": paper_prompt("Q?")}
    assert chat_turns("Q?", system=None) == [user]
    assert chat_turns("Q?", system="Be brief.") == [{"role": "system", "content": "Be brief."}, user]


def test_response_has_no_marks_and_the_brief_format():
    assert response_from_answer(ANSWER) == ("Ann has 48/2 = 24 pens.\nTogether: 48+24 = 72 pens.\nSo the answer is: 72")
    assert response_from_answer("#### 5") == "So the answer is: 5"
    assert response_from_answer("a < b << c\n#### 1,080") == "a < b << c\nSo the answer is: 1,080"


@pytest.mark.parametrize(
    ("answer", "gold"),
    [
        ("#### 72", "72"),
        ("#### 1,080,000", "1080000"),
        ("x\n####-5", "-5"),
        ("#### $3.50", "3.5"),
        ("#### 20%", "20"),
        ("#### 1/2", "0.5"),
    ],
)
def test_gold_answer(answer, gold):
    assert gold_answer(answer) == gold


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("it is 5", "no '####"),
        ("#### five", "not a number"),
        ("####", "not a number"),
        ("#### 5 pens", "5 pens"),
        ("#### 1,2345", "1,2345"),
        ("#### 12/4", "12/4"),
    ],
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
        ("lists 1, 2, 3", "3"),
        ("lists 1,2,3", None),
        ("12,34", None),
        ("first 7, then at 10:30", None),
        ("no number", None),
    ],
)
def test_flexible_answer(text, number):
    assert flexible_answer(text) == number


@pytest.mark.parametrize(
    ("said", "number"),
    [
        # Quotation marks, brackets and words around the number.
        ("`18`", "18"), ('"18"', "18"), ("'18'", "18"), ("<b>18</b>", "18"), ("#### 18", "18"), ("US$18", "18"),
        ("USD 18", "18"), ("Rs. 18", "18"), (r"$\boxed{\text{18}}$", "18"), (r"$\mathbf{18}$", "18"), ("~18", "18"),
        ("about 18", "18"), ("= 18", "18"), ("A) 18", "18"), ("\n\n- 18", "18"), ("\n\n> 18", "18"),
        ("is equal to 18", "18"),
        ("18 dollars", "18"), ("18.-", "18"), ("18,", "18"), ("18, of 20", "18"), ("18 < 20", "18"),
        ("18 - that is all", "18"),
        ("18 -- 5 each", "18"), ("2x", "2"), ("50 percent", "50"), ("18\n(9 + 9 = 17)", "18"),
        ("5\n50 cents each", "5"),
        ("more than 18", None), ("> 18", None), ("x5", None), ("$5m", None),
        # Equations: the side that is a single number.
        ("18 = 9 x 2", "18"), ("9 x 2 = 18", "18"), ("9x2=18", "18"), ("168 = 24 hours x 7 days", "168"),
        ("24 hours x 7 = 168", "168"), ("18 = 9 x 2 = 18.00", "18"), ("7 = 3+4 = 7", "7"), ("5 + 5 = 10 = 2 x 5", "10"),
        ("x = 18", "18"), ("x = y = 18", "18"), ("total cost = $18", "18"), ("(3 + 1) x 2 = 8", "8"),
        ("**9** x **2** = **18**", "18"), ("$9$ x $2$ = $18$", "18"), ("$5 x 3 = $15.", "15"),
        ("100% - 20% = 80%", "80"),
        ("50% of 20 = 10", "10"), ("9 times 2 equals 18", "18"), ("10 km/h x 3 h = 30 km", "30"),
        (r"\frac{12}{4} = 3", "3"), ("12/4/3 = 1", "1"), ("1,000/4 = 250", "250"), ("8 = 2^3", "8"),
        ("5! = 120", "120"), ("2/3 of the 18 cakes = 12", "12"), ("10/3 = 3.33", "3.33"),
        ("0.5 = 1/2", "0.5"),
        ("10 / 4 \u2248 2.5", "2.5"),
        ("18 = 9 x 2 (x = 3)", "18"), ("3 + 4 = 7. Then 7 + 2 = 9", "7"),
        # Ambiguous: no answer.
        ("18 apples = 36 halves", None), ("60 minutes = 1 hour", None), ("x = 5, y = 6", None), ("x = 5 and 6", None),
        ("3 + 4 = 7, 7 + 2 = 9", None), ("1/2 = 2/6 + 1/6 = 1/3", None), ("10:30 = 630", None),
        # A calculation without a result, a range, a list.
        ("9 times 2", None), ("50% of 20", None), ("18 of the 20", None), ("5 to 6", None), ("5 - 6", None),
        ("2 : 1", None),
        ("18 / 24 hours", None),
        ("5, 6", None), ("5 and 6", None), ("$5$, $6$", None), ("1, 234", None), ("1 2345", None),
        # But anything after these words is an aside.
        ("18 or 20", "18"), ("18, not 20", "18"), ("18 because 20 - 2 = 18", "18"), ("18 out of 20", "18"),
        ("20, since 15 + 5 = 20", "20"), ("$20/week 4 times", "20"),
    ],
)  # fmt: skip
def test_what_a_sentence_states(said, number):
    for text in (f"3 + 4 = 7.\nSo the answer is: {said}", f"3 + 4 = 7.\nTHE  final ANSWER is\uff1a {said}"):
        assert strict_answer(text) == number


def test_an_unreadable_statement_hides_the_one_before():
    """Unlike one without a number: a correction means that the first answer no longer holds."""
    assert strict_answer("The answer is 7. No, the answer is 12/4") is None


@pytest.mark.parametrize(
    ("text", "strict", "flexible"),
    [
        (r"pay \(\boxed{48}\) dollars for the 16 glasses.", None, "48"),
        (r"\boxed{48}. The answer is 5.\n#### 6\nand 7", "5", "48"),
        (r"\boxed{4}, then \[\boxed{\frac{1}{3}}\] of 9", None, "1/3"),
        (r"\boxed{x = 5} of 9", None, "5"),
        (r"\boxed{\text{Total: } \$18} of 9", None, "18"),
        (r"\boxed{\text{from } 5 \text{ up to } 6} of 9", None, None),
        (r"\boxed{20 \text{ m}^2} of 9", None, "20"),
        (r"\boxed{18 = 9 \times 2} of 9", None, "18"),
        (r"\boxed{4} \boxed{\text{Monday}} of 9", None, "4"),
        (r"The answer is 5 \boxed{Monday}", "5", "5"),
        # A box with anything but a single number gives no answer, and no fallback is used.
        (r"\boxed{5, 6} of 9", None, None),
        (r"\boxed{5 \text{ or } 6} of 9", None, None),
        (r"\boxed{10:30} of 9", None, None),
        (r"\boxed{4} and then \boxed{12", None, None),
        ("#### 18\nand 7", None, "18"),
        ("####1,234 dollars\nand 7", None, "1234"),
        ("#### 18\nThe answer is 5", "5", "18"),
        ("#### 18\n#### x\nand 7", None, "18"),
        ("#### 18 of 20\nand 7", None, None),
        # Markdown headings.
        ("#### Step 2: add\nso 7", None, "7"),
        ("#### 2. Add\nso 7", None, "7"),
        ("##### 18\nso 7", None, "7"),
        ("So the answer is: 18 apples.\nCheck: 20 - 2", "18", "18"),
        ("So the answer is: 12/4\nso 3", None, None),
        ("So the answer is: unclear\nso 3", None, "3"),
        ("It is 18, as 1'234", None, "1234"),
    ],
)
def test_which_answer_comes_first(text, strict, flexible):
    assert strict_answer(text) == strict
    assert flexible_answer(text) == flexible


@pytest.mark.parametrize(
    ("a", "b", "same"),
    [
        ("18", "18.0", True),
        ("-0", "0", True),
        ("0.5", "1/2", True),
        ("1/3", "0.333", False),
        ("18", "18.01", False),
        ("-3", "3", False),
        (None, "3", False),
    ],
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
    text = json.dumps({"question": "Q?", "answer": ANSWER, "source": "other keys are ignored"})
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
