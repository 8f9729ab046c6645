r"""Corrupt one intermediate result of an answer without calculator marks: plain equations, LaTeX, \boxed."""

import json
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemo_minordpo.core.gsm8k import strict_answer
from nemo_minordpo.prepare.build import BuildOptions
from nemo_minordpo.prepare.corruption_plain import corrupt_result, final_spans, stated_answer
from nemo_minordpo.prepare.gsm8k import prepare_gsm8k

METAMATH = (
    "James ate 2/3*6 = 4 slices.\nThen 6 - 4 = 2 slices are left, for 2 * $3.50 = $7.00.\n"
    "Together that is $7.00 + $5 = $12.\n#### 12\nThe answer is: 12"
)
MATH = (
    r"We have $x = 3 \cdot 4 = 12$, and $\sqrt{16} = 4$, so that \[\frac{12}{4} = 3.\] "
    r"Therefore $3 + 1{,}000 = \boxed{1{,}003}$.\nThe answer is: 1003"
)


def _drawn(answer, count=200):
    return [corrupt_result(answer, seed=1, row=row) for row in range(count)]


@pytest.mark.parametrize(
    ("answer", "rights"),
    [
        (METAMATH, {"4", "2", "7.00"}),  # not 12, the final answer
        (MATH, {"12", "4", "3"}),
        ("Say x = 5. Then 5 + 2 = 7, and 7 * 2 = 14.\nThe answer is: 14", {"7"}),  # a calculation is preferred
        ("So x = 5 and y = -2, hence $\\boxed{(5,-2)}$.", {"5"}),  # the final answer ends with -2
        ("2 + 3 = 5\n#### 5", {"5"}),  # the only one
        ("1 + 1 = 2, 2 + 3 = 5, 10 / 2 = 5.\nThe answer is: 5", {"2"}),
        ("1,000 + 500 = 1,500 m and 1,500 - 1 = 1,499 m.\n#### 1499", {"1,500"}),
        ("7 - 9 = -2 and -2 + 1 = -1.\nThe answer is: -1", {"-2"}),
        ("10 \u00d7 3 = 30% and 30 x 2 = 60.\nThe answer is: 60", {"30"}),
    ],
)
def test_which_results_are_drawn(answer, rights):
    assert {one.right for one in _drawn(answer)} == rights


@pytest.mark.parametrize(
    "text",
    [
        "2 + 1 = 3x", "2 + 1 = 3 x 4", "2 + 1 = 3 * 4", "2 + 1 = 3/4", "2 + 1 = 3^2", "2 + 1 = 3{,}000", "2 + 1 = 3(4)",
        "2 + 1 = 3_{10}", r"2 + 1 = 3 \cdot 4", r"2 + 1 = 3\sqrt{2}", r"2 + 1 = 3,\!000", "2 + 1 <= 3", "2 + 1 == 3",
        "2 + 1 >= 3", "2 + 1 != 3", "2 + 1 = three", "no equation",
        "2 + 1 = " + "3" * 5000,
    ],
)  # fmt: skip
def test_numbers_that_are_not_results(text):
    with pytest.raises(ValueError, match="no equation with a number as its result"):
        corrupt_result(f"{text}\nThe answer is: 9", seed=1, row=0)


@pytest.mark.parametrize(
    "end", ["", ".", " apples", "$", "%", r"\%", r"\text{ cm}", r" \text{cm}", ")", "}", r"\)", r"\]", ", so", r"\\"]
)
def test_what_may_follow_a_result(end):
    wrong = corrupt_result(f"2 + 1 = 3{end}\nThe answer is: 9", seed=1, row=0)
    assert wrong.answer == f"2 + 1 = {wrong.wrong}{end}\nThe answer is: 9"


def test_every_form_of_final_answer():
    answer = "So \\boxed{\\frac{1}{2}} it is.\n#### 5 = 5\nthe Answer is 2 + 3 = 5 = 5\nunclosed \\boxed{7 = 7"
    assert [answer[start:end] for start, end in final_spans(answer)] == [
        "\\boxed{\\frac{1}{2}}", "#### 5 = 5", "Answer is 2 + 3 = 5 = 5", "\\boxed{7 = 7",
    ]  # fmt: skip
    assert stated_answer(answer) == "\\boxed{7 = 7"
    with pytest.raises(ValueError, match="no final answer"):
        corrupt_result("2 + 3 = 5", seed=1, row=0)


def test_the_draw_stays_the_same_between_versions():
    # Data sets are named by their seed: a change here changes every published one.
    drawn = [(one.calculation, one.wrong) for one in _drawn(METAMATH, 5)]
    assert drawn == [(2, "7.70"), (2, "7.10"), (0, "5"), (0, "3"), (2, "6.80")]


_numbers = st.one_of(
    st.integers(0, 10**6).map(str), st.integers(0, 10**6).map(lambda number: f"{number:,}"),
    st.integers(1, 999).map(lambda number: f"-{number}"), st.decimals(0, 999, places=2).map(str),
)  # fmt: skip
_words = st.text("abc =+$\\{}()., \u00e9", max_size=15)
_forms = st.sampled_from(
    ["{0} 1 + 2 = {1} apples.", "${0} 3*4 = {1}$", "\\[{0}\\frac{{1}}{{2}} = {1}\\]", "x = {1}. {0}"]
)
_ends = st.sampled_from(["#### {0}\nThe answer is: {0}", "The answer is: {0}", "so it is $\\boxed{{{0}}}$."])


@given(st.lists(st.tuples(_forms, _words, _numbers), min_size=1, max_size=5), _ends, _numbers, st.integers(0, 10**6))
def test_one_number_changes_but_never_the_final_answer(steps, end, final, row):
    answer = "\n".join([form.format(words, number) for form, words, number in steps] + [end.format(final)])
    wrong = corrupt_result(answer, seed=row, row=row)
    assert Decimal(wrong.wrong.replace(",", "")) != Decimal(wrong.right.replace(",", ""))
    # The answers differ in exactly one place: the right number in one, the wrong number in the other.
    start = next(place for place in range(len(answer)) if answer[place] != wrong.answer[place])
    starts = [place for place in range(max(0, start - 12), start + 1) if answer.startswith(wrong.right, place)]
    assert any(answer[:at] + wrong.wrong + answer[at + len(wrong.right) :] == wrong.answer for at in starts)
    before, after = final_spans(answer), final_spans(wrong.answer)
    assert [answer[a:b] for a, b in before] == [wrong.answer[a:b] for a, b in after]
    assert strict_answer(answer) == strict_answer(wrong.answer)
    assert wrong == corrupt_result(answer, seed=row, row=row)


def test_rows_of_metamathqa_and_math_become_pairs(tmp_path):
    rows = [
        {"query": "How much?", "response": METAMATH, "type": "GSM_SV", "original_question": "How much is it?"},
        {"query": "How much is it?", "response": METAMATH, "original_question": "How much is it?"},
        {"problem": "Find x.", "solution": MATH, "level": "Level 5"},
        {"query": "Prove it.", "response": "It is so.\nThe answer is: yes"},
        {"query": "And?", "response": "1 + 1 = 2"},
        {"question": "Marks?", "answer": "She has 3 + 4 = <<3+4=7>>seven, and 7 - 2 = <<7-2=5>>5.\n#### 5"},
        {"question": "None?", "answer": "She has 3 + 4 = 7 and then 7 - 2 = 5.\n#### 5"},
    ]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    manifest = prepare_gsm8k(tmp_path / "rows.json", tmp_path / "out", options=BuildOptions(max_rejected=0.5))
    pairs = [json.loads(line) for line in (tmp_path / "out/train.jsonl").read_text().splitlines()]
    assert [pair["chosen_response"] for pair in pairs[:3]] == [METAMATH, METAMATH, MATH]
    assert [pair["chosen_response"] for pair in pairs[3:]] == [
        "She has 3 + 4 = seven, and 7 - 2 = 5.\nSo the answer is: 5",
        "She has 3 + 4 = 7 and then 7 - 2 = 5.\nSo the answer is: 5",
    ]
    assert pairs[4]["rejected_response"].startswith("She has 3 + 4 = ")
    assert pairs[4]["rejected_response"].endswith(" and then 7 - 2 = 5.\nSo the answer is: 5")
    for pair in pairs:
        assert len(pair["chosen_response"]) > 0
        assert pair["chosen_response"] != pair["rejected_response"]
        assert strict_answer(pair["chosen_response"]) == strict_answer(pair["rejected_response"])
    assert manifest.rejected == {
        "no equation with a number as its result": 1, "no final answer": 1,
    }  # fmt: skip
    assert manifest.counts["repeated_questions"] == 1
