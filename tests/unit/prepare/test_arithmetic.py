"""Generated word problems: GSM8K's format, correct arithmetic, disjoint splits, reproducible from the seed."""

import json
import random
import re
from itertools import islice
from pathlib import Path

import pytest

from nemo_minordpo.core.gsm8k import gold_answer, response_from_answer, strict_answer, without_marks
from nemo_minordpo.prepare import arithmetic
from nemo_minordpo.prepare.arithmetic import arithmetic_problems, write_arithmetic
from nemo_minordpo.prepare.arithmetic_stories import Story
from nemo_minordpo.records import Manifest

MARK = re.compile(r"(\d+) ([-+*/]) (\d+) = \$?<<(\d+)([-+*/])(\d+)=(\d+)>>(\d+)(\D.*)")
VALUE = {"+": lambda a, b: a + b, "-": lambda a, b: a - b, "*": lambda a, b: a * b, "/": lambda a, b: a / b}


@pytest.fixture(scope="module")
def problems():
    return list(islice(arithmetic_problems(7), 5000))


def read_rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_every_line_states_its_calculation_consistently_and_correctly(problems):
    checked = 0
    for problem in problems:
        for line in problem.answer.split("\n")[:-1]:
            found = MARK.search(line)
            assert found, line
            left, sign, right, mark_left, mark_sign, mark_right, mark_result, result, _ = found.groups()
            assert (left, sign, right, result) == (mark_left, mark_sign, mark_right, mark_result), line
            assert VALUE[sign](int(left), int(right)) == int(result), line
            assert line.count("<<") == 1
            checked += 1
    assert checked > 2 * len(problems)


def test_every_number_of_an_answer_was_given_or_calculated_before(problems):
    for problem in problems:
        known = set(re.findall(r"\d+", problem.question)) | {"2"}  # "half" and "as many as" are a 2 without a digit
        for line in problem.answer.split("\n")[:-1]:
            left, _, right, *_, result, _ = MARK.search(line).groups()
            assert {left, right} <= known, problem
            known.add(result)


def test_the_last_line_is_the_last_result(problems):
    for problem in problems:
        *steps, last = problem.answer.split("\n")
        assert last == f"#### {MARK.search(steps[-1]).group(8)}"
        assert gold_answer(problem.answer) == last.removeprefix("#### ")
        assert strict_answer(response_from_answer(problem.answer)) == gold_answer(problem.answer)


def test_two_to_four_steps_all_signs_and_numbers_below_a_thousand(problems):
    steps = [problem.answer.count("\n") for problem in problems]
    assert {count: steps.count(count) > 100 for count in set(steps)} == {2: True, 3: True, 4: True}
    text = "".join(problem.answer for problem in problems)
    assert all(text.count(f" {sign} ") > 500 for sign in "+-*/")
    numbers = [int(number) for problem in problems for number in re.findall(r"\d+", problem.question + problem.answer)]
    assert min(numbers) >= 2  # "1 apples" would be wrong English
    assert max(numbers) < 1000


def test_questions_end_in_a_question_and_differ(problems):
    assert all(problem.question.endswith("?") and "\n" not in problem.question for problem in problems)
    assert len({problem.question for problem in problems}) == len(problems)


def test_every_family_appears(problems):
    words = ["now?", "in all", "together", "an hour", "equally", "miles", "pages", "garden", "saves", "times as many"]
    missing = [word for word in words if sum(word in problem.question for problem in problems) < 50]
    assert missing == []


def test_the_vocabulary_is_small(problems):
    words = {word for problem in problems for word in re.findall(r"[A-Za-z]+", problem.question + problem.answer)}
    assert len(words) < 200
    assert all((problem.question + problem.answer).isascii() for problem in problems)


def test_money_and_line_text_worked_by_hand():
    story = Story(random.Random(0))
    assert story.calculate("Tom has", 12, "+", 5, "apples.") == 17
    assert story.calculate("The pens cost $", 3, "*", 4, ".") == 12
    assert story.calculate("Each friend gets", 12, "/", 4, "pens.") == 3
    assert story.calculate("Mia has $", 30, "-", 12, "left.") == 18
    assert story.steps == [
        "Tom has 12 + 5 = <<12+5=17>>17 apples.",
        "The pens cost 3 * 4 = $<<3*4=12>>12.",
        "Each friend gets 12 / 4 = <<12/4=3>>3 pens.",
        "Mia has 30 - 12 = $<<30-12=18>>18 left.",
    ]
    assert without_marks(story.steps[1]) == "The pens cost 3 * 4 = $12."


@pytest.mark.parametrize(("left", "sign", "right"), [(7, "/", 2), (3, "-", 4)], ids=["not exact", "negative"])
def test_a_calculation_must_have_a_whole_positive_result(left, sign, right):
    with pytest.raises(AssertionError, match=re.escape(f"{left} {sign} {right}")):
        Story(random.Random(0)).calculate("It is", left, sign, right, "pens.")


def test_files_have_the_requested_problems_and_share_no_question(tmp_path):
    manifest = write_arithmetic(tmp_path / "data", num_train=300, num_test=40)
    train, test = read_rows(tmp_path / "data/train.jsonl"), read_rows(tmp_path / "data/test.jsonl")
    assert (len(train), len(test)) == (300, 40)
    assert all(list(row) == ["question", "answer"] for row in train + test)
    assert len({row["question"] for row in train + test}) == 340
    assert manifest.counts == {"test": 40, "train": 300}
    assert Manifest.read(tmp_path / "data") == manifest
    assert manifest.settings == {"num_train": 300, "num_test": 40, "seed": 1234}


def test_the_problems_depend_only_on_the_seed(tmp_path):
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        write_arithmetic(tmp_path / name, num_train=50, num_test=10, seed=seed)
    texts = {name: (tmp_path / name / "train.jsonl").read_bytes() for name in "abc"}
    assert texts["a"] == texts["b"] != texts["c"]


def test_more_training_problems_do_not_change_the_test_problems(tmp_path):
    write_arithmetic(tmp_path / "small", num_train=5, num_test=10)
    write_arithmetic(tmp_path / "large", num_train=50, num_test=10)
    assert (tmp_path / "small/test.jsonl").read_bytes() == (tmp_path / "large/test.jsonl").read_bytes()
    small, large = read_rows(tmp_path / "small/train.jsonl"), read_rows(tmp_path / "large/train.jsonl")
    assert large[:5] == small


def test_nothing_is_overwritten_unless_requested(tmp_path):
    write_arithmetic(tmp_path, num_train=5, num_test=5)
    before = (tmp_path / "train.jsonl").read_bytes()
    with pytest.raises(ValueError, match="exists already"):
        write_arithmetic(tmp_path, num_train=5, num_test=5, seed=2)
    assert (tmp_path / "train.jsonl").read_bytes() == before
    write_arithmetic(tmp_path, num_train=5, num_test=5, seed=2, overwrite=True)
    assert (tmp_path / "train.jsonl").read_bytes() != before


@pytest.mark.parametrize(
    ("num_train", "num_test", "message"),
    [
        (0, 5, "num_train = 0"),
        (5, -1, "num_test = -1"),
        (arithmetic.MAX_PROBLEMS, 1, "num_train \\+ num_test = 1000001: at most 1000000"),
    ],
)
def test_numbers_out_of_range_are_refused_before_anything_is_written(tmp_path, num_train, num_test, message):
    with pytest.raises(ValueError, match=message):
        write_arithmetic(tmp_path / "data", num_train=num_train, num_test=num_test)
    assert not (tmp_path / "data").exists()


def test_one_problem_per_file_is_enough(tmp_path):
    assert write_arithmetic(tmp_path, num_train=1, num_test=1).counts == {"test": 1, "train": 1}
