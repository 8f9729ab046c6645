"""GSM8K as text: the paper's prompt, answers in its brief format, and the number that a text gives as its answer.

Numbers are handed on as normalised decimal strings ("1234.5", "-3", "0.5"), never as floats: they stay exact
and readable in `predictions.jsonl`, and equal numbers are equal strings.
"""

import re
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from nemo_minordpo.records import object_with_texts

# Xie et al. 2024 (MinorDPO), end of section 4, wording and punctuation as printed.
PAPER_INSTRUCTION = (
    "You are a helpful assistant. Please answer follow question step by step and give final answer in a separate "
    "line using the brief format So the answer is: . Below is the question:"
)

_CALCULATOR_MARK = re.compile(r"<<[^<>\n]*>>")
_MINUS = "-\u2212"
_CURRENCY = "$\u20ac\u00a3"
# A minus counts as a sign only where no operand stands before it: "10-3" ends in 3, "is -3" in -3.
_NUMBER = re.compile(
    rf"(?P<sign>(?<![\w)%])[{_MINUS}])?[{_CURRENCY}]?"
    r"(?P<digits>(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+)"
)
# Between "answer is" and the number: the brief format's own colon and full stop (echoed by some models),
# line ends, Markdown, brackets and LaTeX openings.
_ANSWER_IS = re.compile(rf"answer is(?:[\s:.*_(\[{{\\{_CURRENCY}]|boxed)*?(?={_NUMBER.pattern})", re.IGNORECASE)
# An arithmetic operator with an operand after it, behind at most one word of unit: "2 * 3", "12 apples / 4".
_OPERATOR = rf"(?:[{_MINUS}+*/xX\u00d7\u00f7]|\\times|\\cdot)"
_GOES_ON = re.compile(rf"[\s%]*(?:(?![xX]\b)[A-Za-z]+\s*)??(?:(?P<equals>=)|{_OPERATOR}[\s({_CURRENCY}]*\.?[0-9])")
_SENTENCE_END = re.compile(r"[.!?](?=\s|$)")


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One row of a GSM8K-format file."""

    question: str
    answer: str  # steps with calculator marks, then a line `#### <number>`

    @classmethod
    def from_json(cls, text: str) -> "Problem":
        """Read one line; other keys of the object are left unread.

        Raises:
            ValueError: the reason, without the place: the caller knows file and line.
        """
        row = object_with_texts(text, ("question", "answer"))
        gold_answer(row["answer"])
        return cls(question=row["question"], answer=row["answer"])


def paper_prompt(question: str) -> str:
    """The user turn of the paper's inference prompt."""
    return f"{PAPER_INSTRUCTION} {question}"


def plain_prompt(question: str) -> str:
    """What a model without a chat template reads before its response."""
    return paper_prompt(question) + "\n"


def chat_prompt(question: str, *, tokenizer: Any, system: str | None) -> str:
    """What a chat model reads before its response: its template around the paper's prompt, up to the response.

    Args:
        question: the bare question.
        tokenizer: has a chat template; only its `apply_chat_template` is used.
        system: the system turn; None leaves it to the template (Qwen's adds one of its own).
    """
    turns = [] if system is None else [{"role": "system", "content": system}]
    turns.append({"role": "user", "content": paper_prompt(question)})
    return tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)


def response_from_answer(answer: str) -> str:
    """A GSM8K answer as the response that the paper's prompt asks for.

    Calculator marks (`<<48/2=24>>`) are taken out and the last line `#### 24` becomes `So the answer is: 24`.

    Raises:
        ValueError: `answer` has no final answer, see `gold_answer`.
    """
    gold_answer(answer)
    steps, _, final = answer.rpartition("####")
    return f"{without_marks(steps).strip()}\nSo the answer is: {final.strip()}".strip()


def without_marks(text: str) -> str:
    """`text` without GSM8K's calculator marks."""
    return _CALCULATOR_MARK.sub("", text)


def gold_answer(answer: str) -> str:
    """The number behind `####` of a GSM8K answer, normalised.

    Raises:
        ValueError: there is no `####`, or no single number behind the last one.
    """
    _, mark, final = answer.rpartition("####")
    if not mark:
        raise ValueError("no '#### <number>' line: GSM8K answers end with one")
    number = _NUMBER.fullmatch(final.strip().removesuffix("%"))
    if number is None:
        raise ValueError(f"not a number behind '####': {final.strip()[:40]!r}")
    return _normalised(number)


def strict_answer(text: str) -> str | None:
    r"""The number that the last "answer is" of `text` states, normalised; None when there is none.

    Accepts "So the answer is: 18", "The answer is 18", "**...**", "$1,234.50", "\(3\)" and a line end before the
    number. Of "the answer is 2 * 3 = 6" it takes the number behind the last "=" of the sentence; a calculation
    without a result ("the answer is 12/4") states no number. "the answer is x = 5" and fractions are not understood.
    """
    stated = None
    for place in _ANSWER_IS.finditer(text):
        stated = _stated_at(text, place.end())
    return stated


def flexible_answer(text: str) -> str | None:
    """The last number of `text`, normalised; None when there is none."""
    last = None
    for last in _NUMBER.finditer(text):  # noqa: B007  only the last one is wanted
        pass
    return None if last is None else _normalised(last)


def same_number(a: str | None, b: str | None) -> bool:
    """Whether two decimal strings are the same number, exactly; None (no answer) equals nothing."""
    return a is not None and b is not None and Decimal(a) == Decimal(b)


def _stated_at(text: str, start: int) -> str | None:
    number = _NUMBER.match(text, start)
    assert number is not None, "_ANSWER_IS ends where a number starts"
    tail = text[number.end() :].split("\n", 1)[0]
    sentence_end = _SENTENCE_END.search(tail)
    tail = tail[: sentence_end.start()] if sentence_end else tail
    goes_on = _GOES_ON.match(tail)
    if goes_on is None:
        return _normalised(number)
    result = _NUMBER.search(tail.rpartition("=")[2]) if "=" in tail else None
    if result is None:
        return _normalised(number) if goes_on["equals"] else None
    return _normalised(result)


def _normalised(number: re.Match[str]) -> str:
    whole, _, fraction = number["digits"].replace(",", "").partition(".")
    whole, fraction = whole.lstrip("0") or "0", fraction.rstrip("0")
    digits = f"{whole}.{fraction}" if fraction else whole
    return f"-{digits}" if number["sign"] and digits != "0" else digits
