"""Functions that the YAML files in this folder call."""

import os
from pathlib import Path
from typing import Any

import datasets

from nemo_minordpo.core.gsm8k import (
    Problem,
    flexible_answer,
    gold_answer,
    paper_prompt,
    plain_prompt,
    same_number,
    strict_answer,
)
from nemo_minordpo.errors import UserError
from nemo_minordpo.files import read_lines


def questions(**_: Any) -> dict[str, datasets.Dataset]:
    """The file that MINORDPO_QUESTIONS names, in GSM8K's format.

    Raises:
        ValueError: the variable is not set, or a line is not a question.
    """
    named = os.environ.get("MINORDPO_QUESTIONS")
    if not named:
        raise UserError("MINORDPO_QUESTIONS is not set: set it to GSM8K's test.jsonl, or any jsonl with its two keys")
    rows = []
    for number, text in read_lines(Path(named)):
        try:
            problem = Problem.from_json(text)
        except UserError as error:
            raise UserError(f"{named}:{number}: {error}") from error
        rows.append({"question": problem.question, "answer": problem.answer})
    return {"test": datasets.Dataset.from_list(rows)}


def chat_text(row: dict[str, str]) -> str:
    return paper_prompt(row["question"])


def plain_text(row: dict[str, str]) -> str:
    return plain_prompt(row["question"])


def judge(row: dict[str, str], results: list[str]) -> dict[str, float]:
    """Judge an answer as `minordpo evaluate` does, except for degeneration, which needs tokens."""
    gold, strict = gold_answer(row["answer"]), strict_answer(results[0])
    return {
        "strict": float(same_number(strict, gold)),
        "flexible": float(same_number(flexible_answer(results[0]), gold)),
        "no_answer": float(strict is None),
    }
