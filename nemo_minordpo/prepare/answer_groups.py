"""Answers that a model wrote, grouped by question and judged; a right and a wrong one are matched."""

import itertools
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from rapidfuzz.distance import Levenshtein
from rapidfuzz.process import cdist

from nemo_minordpo.checked_json import checked_text, found_in
from nemo_minordpo.core.gsm8k import flexible_answer, gold_answer, same_number, strict_answer
from nemo_minordpo.errors import UserError
from nemo_minordpo.prepare.rows import Row

Rule = Literal["strict", "flexible"]
Matching = Literal["closest", "farthest", "random"]
RULES = {"strict": strict_answer, "flexible": flexible_answer}
MATCHINGS: tuple[str, ...] = get_args(Matching)
ALL_RIGHT, ALL_WRONG = "every finished answer is right", "every finished answer is wrong"
_NONE_USED = "no answer is finished"
QUESTION, PROMPT = "question", "prompt"  # a question is put into the paper's prompt; a prompt is used as it is
CHOSEN, REJECTED = "chosen_response", "rejected_response"
_QUESTIONS = (QUESTION, "query", "problem", PROMPT)
_ANSWERS = ("output", "response", "completion", "generation")
_VERDICTS = ("correct", "is_correct")
_FINISHED = "finished"
# what `minordpo evaluate` records of an answer besides its texts
_RECORDED = ("gold", _FINISHED, "index", "sample", "num_tokens", "strict", "flexible", "degenerate")


class Answer(NamedTuple):
    """One answer and where it was found."""

    text: str
    place: Row
    others: dict[str, Any]  # columns of its row that say neither question, answer nor verdict


@dataclass
class Group:
    """The different answers to one question, in the order in which they were found."""

    kind: str  # QUESTION or PROMPT
    question: str
    first: Row
    right: dict[str, Answer] = field(default_factory=dict)
    wrong: dict[str, Answer] = field(default_factory=dict)

    def add(self, answer: Answer, *, is_right: bool) -> None:
        """Raises UserError if an equal answer was judged differently."""
        mine, others = (self.right, self.wrong) if is_right else (self.wrong, self.right)
        if answer.text in others:
            raise UserError(f"the same answer is called right and wrong: see {others[answer.text].place.place}")
        mine.setdefault(answer.text, answer)

    @property
    def why_no_pair(self) -> str:
        """Empty if there are right and wrong answers."""
        if self.right and self.wrong:
            return ""
        return ALL_RIGHT if self.right else ALL_WRONG if self.wrong else _NONE_USED


def group_answers(rows: Iterable[Row], *, rule: Rule) -> tuple[list[Group], list[Row], Counter[str]]:
    """Judge all answers and group them by question.

    Args:
        rows: one answer each: `question`, `query`, `problem` or `prompt`; `output`, `response`, `completion` or
            `generation`; and `correct` (true or false), or `gold`, the right number. An answer whose `finished` is
            false is not used: training would teach the model to end where it was cut. Nor is an empty one.
        rule: how the number of an answer is found if there is no `correct`, see core/gsm8k.py.

    Returns:
        (the groups in the order of their first answers; the rows that could not be read, with the reason as their
        fault; counts of answers)
    """
    groups: dict[tuple[str, str], Group] = {}
    faulty: list[Row] = []
    counts: Counter[str] = Counter(
        dict.fromkeys(("answers", "right answers", "wrong answers", "unfinished answers"), 0)
    )
    for row in rows:
        counts["answers"] += 1
        place = row._replace(value=None)
        try:
            fields = row.fields()
            asked, written = _named(fields, _QUESTIONS), _named(fields, _ANSWERS)
            if CHOSEN in fields or REJECTED in fields:
                raise UserError(f"a row of answers has no {CHOSEN} or {REJECTED}: this is a pair")
            kind, question = PROMPT if asked == PROMPT else QUESTION, checked_text(fields, asked)
            is_used = fields.get(_FINISHED) is not False and fields[written] != ""
            text = checked_text(fields, written) if is_used else ""
            is_right = is_used and _is_right(fields, text, rule=rule)
            group = groups.setdefault((kind, question), Group(kind, question, place))
            if not is_used:
                counts["unfinished answers"] += 1
                continue
            known = (asked, written, *_VERDICTS, *_RECORDED)
            others = {key: value for key, value in fields.items() if key not in known}
            group.add(Answer(text, place, others), is_right=is_right)
            counts["right answers" if is_right else "wrong answers"] += 1
        except UserError as error:
            faulty.append(place._replace(fault=str(error)))
    return list(groups.values()), faulty, counts


def _named(fields: dict[str, Any], names: Sequence[str]) -> str:
    """The first of these columns that the row has."""
    found = next((name for name in names if fields.get(name) is not None), None)
    if found is None:
        raise UserError(f"no column {', '.join(names)} ({found_in(fields)})")
    return found


def _is_right(fields: dict[str, Any], text: str, *, rule: Rule) -> bool:
    for name in _VERDICTS:
        if (verdict := fields.get(name)) is not None:
            if verdict not in (0, 1):  # also True and False
                raise UserError(f"field {name!r} must be true or false, not {str(verdict)[:40]!r}")
            return bool(verdict)
    gold = fields.get("gold")
    if gold is None:
        raise UserError(
            f"no verdict: expected {' or '.join(_VERDICTS)} (true or false), or gold, the right number "
            f"({found_in(fields)})"
        )
    return same_number(RULES[rule](text), gold_answer(f"#### {gold}"))


def matched(group: Group, *, matching: Matching, number: int, seed: int) -> Iterator[tuple[Answer, Answer]]:
    """At most `number` (right, wrong) pairs of a group; no answer is in two of them.

    Args:
        group: with right and wrong answers.
        matching: "closest" takes the two answers with the smallest edit distance first, as a share of the longer one;
            "farthest" the largest; of equal distances, the answers that were found first. "random" draws.
        number: of pairs.
        seed: for "random"; the draw also depends on the question.
    """
    right, wrong = list(group.right.values()), list(group.wrong.values())
    if matching == "random":
        places = list(itertools.product(range(len(right)), range(len(wrong))))
        random.Random(f"{seed}:{group.question}").shuffle(places)
    else:
        distances = cdist(
            list(group.right), list(group.wrong), scorer=Levenshtein.normalized_distance, dtype=np.float64
        )
        order = np.argsort(distances if matching == "closest" else -distances, axis=None, kind="stable")
        places = [divmod(int(place), len(wrong)) for place in order]
    taken_right: set[int] = set()
    taken_wrong: set[int] = set()
    for one, other in places:
        if len(taken_right) == number:
            return
        if one not in taken_right and other not in taken_wrong:
            taken_right.add(one)
            taken_wrong.add(other)
            yield right[one], wrong[other]
