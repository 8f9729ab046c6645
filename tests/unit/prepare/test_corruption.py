import re
from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nemo_minordpo.core.gsm8k import response_from_answer, strict_answer
from nemo_minordpo.errors import UserError
from nemo_minordpo.prepare.corruption import corrupt_calculation, near_wrong_numbers

THREE = (
    "Ann has 48/2 = <<48/2=24>>24 pens.\n"
    "They cost 24*1000 = $<<24*1000=24000>>24,000 a year.\n"
    "Half of it is 24000/2 = $<<24000/2=12000>>12,000.\n"
    "#### 12,000"
)
_MARK = re.compile(r"<<([^<>]*)=([^<>]*)>>")


@pytest.mark.parametrize(
    ("number", "near"),
    [
        ("24", ["22", "23", "25", "26"]),
        ("50", ["45", "46", "47", "48", "49", "51", "52", "53", "54", "55"]),
        ("300", ["270", "280", "290", "310", "320", "330"]),
        ("1,000", ["800", "900", "1,100", "1,200"]),
        ("1000", ["800", "900", "1100", "1200"]),
        ("990", [str(number) for number in range(900, 1090, 10) if number != 990]),
        ("9876", [str(number) for number in range(9856, 9897) if number != 9876]),
        ("5", ["3", "4", "6", "7"]),
        ("1", ["2", "3"]),
        ("0", ["1", "2"]),
        ("-5", ["-3", "-4", "-6", "-7"]),
        (".4", [".2", ".3", ".5", ".6"]),
        (".9", [".7", ".8", "1.0", "1.1"]),
        ("0.2", ["0.1", "0.3", "0.4"]),
        ("0.05", ["0.03", "0.04", "0.06", "0.07"]),
        ("27.00", ["25.00", "26.00", "28.00", "29.00"]),
    ],
)
def test_near_wrong_numbers(number, near):
    assert near_wrong_numbers(number) == near


@settings(deadline=None)  # the machine may be busy
@given(st.decimals(min_value=0, max_value=10**9, places=2), st.booleans(), st.booleans())
def test_near_wrong_numbers_are_near_and_wrong(number, separators, whole):
    value = Decimal(int(number)) if whole else number
    written = f"{value:,}" if separators else str(value)
    wrong = [Decimal(text.replace(",", "")) for text in near_wrong_numbers(written)]
    assert wrong
    assert len(set(wrong)) == len(wrong)
    assert value not in wrong
    assert min(wrong) > 0
    # Two units of the second digit from the left are at most a fifth.
    unit = Decimal(1) if whole else Decimal("0.01")
    assert len(wrong) <= 40
    assert max(abs(one - value) for one in wrong) <= max(2 * unit, value / 5)


def test_mark_and_displayed_result_change_together():
    # Two marks, so that only the first is intermediate.
    answer = "Ann has 48/2 = <<48/2=24>>24 pens, 24 of them red.\n24+48 = <<24+48=72>>72.\n#### 72"
    wrong = corrupt_calculation(answer, seed=1, row=0)
    assert wrong.right == "24"
    assert wrong.wrong in ("22", "23", "25", "26")
    assert wrong.calculation == 0
    # The later "24" is elsewhere in the text; it is not this calculation's result.
    assert wrong.answer == answer.replace("<<48/2=24>>24", f"<<48/2={wrong.wrong}>>{wrong.wrong}")


def test_every_intermediate_calculation_can_be_drawn_but_never_the_last():
    drawn = [corrupt_calculation(THREE, seed=1, row=row) for row in range(60)]
    assert {one.calculation for one in drawn} == {0, 1}
    assert len({one.wrong for one in drawn}) > 5


def test_thousands_separators_are_shown_but_not_in_the_mark():
    wrong = next(one for row in range(60) if (one := corrupt_calculation(THREE, seed=1, row=row)).calculation == 1)
    assert re.fullmatch(r"2[0-9],000", wrong.wrong)
    assert f"<<24*1000={wrong.wrong.replace(',', '')}>>{wrong.wrong} a year" in wrong.answer


def test_the_only_calculation_is_corrupted_and_the_final_answer_stays():
    wrong = corrupt_calculation("2+3 = <<2+3=5>>5\n#### 5", seed=1, row=0)
    assert re.fullmatch(r"2\+3 = <<2\+3=([3467])>>\1\n#### 5", wrong.answer)


def test_a_result_that_is_not_shown_is_unchanged():
    answer = "It is <<2*5=10>>ten, or <<2*5=10>>100, or <<5*2=10>>$10.\nSum <<3*10=30>>30.\n#### 30"
    assert {corrupt_calculation(answer, seed=1, row=row).calculation for row in range(20)} == {2}


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("2 + 3 = 5\n#### 5", "no calculator mark"),
        ("<<5>>5\n#### 5", "no calculator mark"),
        ("It is <<2*5=10>>ten.\nSum <<3*10=30>>30.\n#### 30", "shows its result"),
        ("It is <<2*x=2x>>2 and <<1+1=2>>2.\n#### 2", "shows its result"),
        (f"<<1+1={'9' * 5000}>>{'9' * 5000} and <<1+1=2>>2.\n#### 2", "shows its result"),
    ],
)
def test_answers_without_a_usable_calculation_are_refused(answer, reason):
    with pytest.raises(UserError, match=reason):
        corrupt_calculation(answer, seed=1, row=0)


def test_the_draw_stays_the_same_between_versions():
    # Data sets are named by their seed: a change here changes every published one.
    drawn = [corrupt_calculation(THREE, seed=1234, row=row) for row in range(6)]
    assert [(one.calculation, one.wrong) for one in drawn] == [
        (1, "25,000"),
        (1, "22,000"),
        (1, "23,000"),
        (0, "22"),
        (0, "22"),
        (1, "25,000"),
    ]


def test_the_draw_depends_on_seed_and_row():
    base = [corrupt_calculation(THREE, seed=1, row=row).answer for row in range(30)]
    assert base == [corrupt_calculation(THREE, seed=1, row=row).answer for row in range(30)]
    assert base != [corrupt_calculation(THREE, seed=2, row=row).answer for row in range(30)]
    assert base != [corrupt_calculation(THREE, seed=1, row=row + 1).answer for row in range(30)]


_numbers = st.one_of(
    st.integers(0, 10**7).map(str),
    st.integers(0, 10**7).map(lambda number: f"{number:,}"),
    st.integers(1, 10**7).map(lambda number: f"-{number}"),
    st.decimals(min_value=0, max_value=10**5, places=2).map(str),
)
_steps = st.lists(
    st.tuples(st.text(alphabet="abc 0123456789=+.", max_size=12), _numbers, st.sampled_from(["", "$", " "])),
    min_size=1,
    max_size=5,
)


@settings(deadline=None)  # the machine may be busy
@given(_steps, st.integers(0, 10**6), st.integers(0, 10**6))
def test_exactly_one_calculation_changes_but_never_the_final_answer(steps, seed, row):
    lines = [f"{text} <<1+1={number.replace(',', '')}>>{gap}{number} pens" for text, number, gap in steps]
    answer = "\n".join([*lines, f"#### {steps[-1][1]}"])
    wrong = corrupt_calculation(answer, seed=seed, row=row)

    differing = [
        place
        for place, (old, new) in enumerate(zip(answer.split("\n"), wrong.answer.split("\n"), strict=True))
        if old != new
    ]
    assert differing == [wrong.calculation]
    assert wrong.calculation < max(1, len(steps) - 1)
    old, new = _MARK.findall(answer), _MARK.findall(wrong.answer)
    assert [one for one, other in zip(old, new, strict=True) if one != other] == [old[wrong.calculation]]
    assert Decimal(wrong.wrong.replace(",", "")) != Decimal(wrong.right.replace(",", ""))

    chosen, rejected = response_from_answer(answer), response_from_answer(wrong.answer)
    assert chosen != rejected
    assert strict_answer(chosen) == strict_answer(rejected)
    start = sum(len(line) + 1 for line in chosen.split("\n")[: wrong.calculation])
    assert rejected[:start] == chosen[:start]
    assert rejected.endswith(" pens\n" + chosen.split(" pens\n", wrong.calculation + 1)[-1])
