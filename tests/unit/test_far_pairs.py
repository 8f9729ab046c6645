import pytest

from tests.benchmarks.far_pairs import rows_of


def problem(question, number):
    return {"question": question, "answer": f"It is {number}.\n#### {number}"}


def test_a_wrong_answer_is_that_of_the_next_problem_with_another_number():
    rows = rows_of([problem("a?", 1), problem("b?", 1), problem("c?", 2)])
    assert [(row["question"], row["response"].split()[-1], row["is_correct"]) for row in rows] == [
        ("a?", "1", True), ("a?", "2", False), ("b?", "1", True), ("b?", "2", False), ("c?", "2", True),
        ("c?", "1", False),
    ]  # fmt: skip


def test_problems_with_one_number_have_no_wrong_answer():
    with pytest.raises(ValueError, match="all 2 problems have the answer 1"):
        rows_of([problem("a?", 1), problem("b?", 1)])
