"""GSM8K as text: the paper's prompt, answers in its brief format, and extraction of the number a text answers.

Numbers are normalised strings ("1234.5", "-3", "0.5", "1/3"), never floats: they stay exact and readable in
`predictions.jsonl`, and equal numbers are equal strings.
"""

import re
from dataclasses import dataclass
from fractions import Fraction

from nemo_minordpo.checked_json import object_with_texts
from nemo_minordpo.core.numerals import CURRENCY, Numeral, normalised, numeral_at, numerals, plain
from nemo_minordpo.errors import UserError

# Xie et al. 2024 (MinorDPO), end of section 4, verbatim.
PAPER_INSTRUCTION = (
    "You are a helpful assistant. Please answer follow question step by step and give final answer in a separate "
    "line using the brief format So the answer is: . Below is the question:"
)

# Version of the extraction rules here and in numerals.py. Raise it whenever any text is read differently.
ANSWER_RULES = 2

_CALCULATOR_MARK = re.compile(r"<<[^<>\n]*>>")
_ANSWER_IS = re.compile(r"answer\s+is", re.IGNORECASE)
_BOX = re.compile(r"boxed\s*\{")
_MARKED = re.compile(r"(?<!#)####(?!#)(.*)")
_HEADING = re.compile(r"[\s*]*[0-9]+\s*[.):-]\s+\S")
# Between "answer is" and the number: the brief format's colon and full stop (echoed by some models), line ends, list
# marks, brackets, quotation marks, "about", and the letter of a choice.
_LEAD = re.compile(
    rf"(?:\n\s*[-+>\u2022]\s+|[\s:*_(\[\\'#~=\u2248]|[{CURRENCY}](?!\s?-?\.?[0-9])|\.(?![0-9])|\(?[A-E]\)"
    r"|(?:about|approximately|approx\.?|around|roughly|nearly|exactly|only)(?![A-Za-z]))*",
    re.IGNORECASE,
)
_NAMED = re.compile(r"(?:[A-Za-z][A-Za-z ]{0,40}=\s*)+")  # x =, total cost =
# After at most three words of unit, an equals sign, or an operator and its operand: "2 * 3", "12 apples / 4".
_CLOSING = r"[\s%\u00b0)\]'$]*"
_WORD = r"(?:/\s*)?[A-Za-z]+\b"
_OPERATOR_WORD = r"(?:plus|minus|times|(?:divided|multiplied)\s+by|to|(?<!out )of(?:\s+[A-Za-z]+)?)(?=\s)"
_OPERATOR = rf"(?:[-+*/xX\u00d7\u00f7]|\s:|{_OPERATOR_WORD})"
_GOES_ON = re.compile(
    rf"{_CLOSING}(?:(?![xX]\b){_WORD}[\s)]*){{0,3}}?(?:[=\u2248]|{_OPERATOR}[\s({CURRENCY}]*-?\.?[0-9])"
)
_NEXT_OF_A_LIST = re.compile(rf"{_CLOSING}(?:[,;&]|and\b)?[\s{CURRENCY}]*[0-9]")
_SENTENCE_END = re.compile(r"[.!?](?=\s|$)|\n|$")
_ASIDE = re.compile(r"\([^()]*[=\u2248][^()]*\)")


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One row of a GSM8K-format file."""

    question: str
    answer: str  # steps with calculator marks, then a line `#### <number>`

    @classmethod
    def from_json(cls, text: str) -> "Problem":
        """Read one line; other keys are ignored.

        Raises:
            UserError: the row is invalid. The caller adds file and line.
        """
        row = object_with_texts(text, ("question", "answer"))
        gold_answer(row["answer"])
        return cls(question=row["question"], answer=row["answer"])


def paper_prompt(question: str) -> str:
    """The user turn in the paper's inference prompt."""
    return f"{PAPER_INSTRUCTION} {question}"


def plain_prompt(question: str) -> str:
    """The prompt for a model without a chat template."""
    return paper_prompt(question) + "\n"


def chat_turns(question: str, *, system: str | None) -> list[dict[str, str]]:
    """The conversation for a chat model: the paper's prompt as the user turn.

    Args:
        question: the bare question.
        system: the system turn; None leaves it to the chat template (Qwen's adds its own).
    """
    turns = [] if system is None else [{"role": "system", "content": system}]
    return [*turns, {"role": "user", "content": paper_prompt(question)}]


def response_from_answer(answer: str) -> str:
    """Rewrite a GSM8K answer as the response that the paper's prompt asks for.

    Removes calculator marks (`<<48/2=24>>`); the last line `#### 24` becomes `So the answer is: 24`.

    Raises:
        UserError: `answer` has no final answer, see `gold_answer`.
    """
    gold_answer(answer)
    steps, _, final = answer.rpartition("####")
    return f"{without_marks(steps).strip()}\nSo the answer is: {final.strip()}".strip()


def without_marks(text: str) -> str:
    """`text` without GSM8K's calculator marks."""
    return _CALCULATOR_MARK.sub("", text)


def gold_answer(answer: str) -> str:
    """The number after `####` in a GSM8K answer, normalised.

    Raises:
        UserError: there is no `####`, or no single number after the last one.
    """
    _, mark, final = answer.rpartition("####")
    if not mark:
        raise UserError("no '#### <number>' line: GSM8K answers end with one")
    final = final.strip()
    written = plain(final.removesuffix("%"))
    number = numeral_at(written, 0)
    if number is None or number.value is None or number.end != len(written):
        raise UserError(f"not a number after '####': {final[:40]!r}")
    return normalised(number.value)


def strict_answer(text: str) -> str | None:
    r"""The number stated by the last "answer is" in `text`, normalised; None if there is none.

    Accepts "So the answer is: 18", "The answer is 18", "**...**", "$1,234.50", "\(3\)" and a line end before the
    number; `numerals` defines a number. An "answer is" without a number is skipped in favour of an earlier one; an
    unreadable number is not.

    - Equations: the side that is a single number, whatever is on the others: "18 = 9 x 2", "9 x 2 = 18", "x = 18".
      Sides that are different numbers ("18 apples = 36 halves", "x = 5, y = 6") give no answer. Next to a plain number,
      a fraction or power is the calculation ("10/3 = 3.33", "8 = 2^3").
    - A calculation without a result ("12/4", "2 x 3", "5-10", "5 to 10", "2 : 1") is no answer.
    - A list ("5, 6", "5 and 6") is no answer. In "18 or 20", "20, since 15 + 5 = 20" and "18 (9 * 2 = 18)", the first
      number is the answer.
    """
    return _last(_stated(text))


def flexible_answer(text: str) -> str | None:
    r"""The number that `text` gives as its answer in one of the usual ways, normalised; None if there is none.

    The first of these that is present decides, even if its number is unreadable: the last `\boxed{...}`, the last
    `#### ...` line, the last "answer is" (see `strict_answer`), the last number. Boxes without a number and `####`
    lines that do not begin with one are skipped; a second number next to the answer makes it no answer.
    """
    for rule in (_boxed, _marked, _stated, _numbers):
        found = rule(text)
        if found:
            return _last(found)
    return None


def same_number(a: str | None, b: str | None) -> bool:
    """Whether two numbers, written as decimals or fractions, are exactly equal; None (no answer) equals nothing."""
    return a is not None and b is not None and Fraction(a) == Fraction(b)


# Each rule returns its findings in order; None is an unreadable number.


def _boxed(text: str) -> list[str | None]:
    found: list[str | None] = []
    for box in _BOX.finditer(text):
        end = _closing_brace(text, box.end())
        if end is None:  # text cut off inside a box may have been cut off inside a number
            found.append(None)
            continue
        written = plain(text[box.end() : end])
        found += _statement(written, alone=True) or _only([_text(number) for number in numerals(written)])
    return found


def _only(found: list[str | None]) -> list[str | None]:
    return found if len(found) < 2 else [None]


def _marked(text: str) -> list[str | None]:
    lines = (line for line in _MARKED.findall(text) if not _HEADING.match(line))
    return [answer for line in lines for answer in _statement(plain(line), alone=True)]


def _stated(text: str) -> list[str | None]:
    written = plain(text)
    ends = [place.end() for place in _ANSWER_IS.finditer(written)]
    return [answer for end in ends for answer in _statement(written[end:], alone=False)]


def _numbers(text: str) -> list[str | None]:
    return [_text(number) for number in numerals(plain(text))]


def _last(found: list[str | None]) -> str | None:
    return found[-1] if found else None


def _closing_brace(text: str, start: int) -> int | None:
    """Position of the brace that closes the one opened just before `start`."""
    depth = 1
    for place in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[place], 0)
        if depth == 0:
            return place
    return None


def _statement(text: str, *, alone: bool) -> list[str | None]:
    """The number that a plain text begins with, if any; `alone`: no other number may follow."""
    start = _end_of_lead(text, 0)
    named = _NAMED.match(text, start)
    number = numeral_at(text, _end_of_lead(text, named.end()) if named else start)
    if number is None:
        return []
    sentence_end = _SENTENCE_END.search(text, number.end)
    assert sentence_end is not None, "every text has an end"
    tail = text[number.end : sentence_end.start()]
    if named or _GOES_ON.match(tail):
        return [_solved(text[start : sentence_end.start()])]
    listed = _NEXT_OF_A_LIST.match(tail) or (alone and next(numerals(tail), None))
    return [None if listed else _text(number)]


def _solved(equation: str) -> str | None:
    """The single number that is alone on one side of an equation."""
    plain_ones, calculations = set(), set()
    for side in re.split("[=\u2248]", _ASIDE.sub(" ", equation)):
        number = numeral_at(side, _end_of_lead(side, 0))
        if number is None or _GOES_ON.match(side, number.end):
            continue
        listed = _NEXT_OF_A_LIST.match(side, number.end)
        (calculations if number.is_calculation else plain_ones).add(None if listed else _text(number))
    found = plain_ones or calculations
    return found.pop() if len(found) == 1 else None


def _end_of_lead(text: str, start: int) -> int:
    lead = _LEAD.match(text, start)
    assert lead is not None, "the lead may be empty"
    return lead.end()


def _text(number: Numeral) -> str | None:
    return None if number.value is None else normalised(number.value)
