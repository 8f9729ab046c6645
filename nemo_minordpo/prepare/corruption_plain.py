r"""Make wrong answers close to right ones without calculator marks: plain equations and LaTeX.

As in corruption.py, one intermediate result changes and every other character stays: the 4 in "2/3*6 = 4 slices",
never the final answer after "The answer is" or "####", or in \boxed{}.
"""

import random
import re
from decimal import Decimal

from nemo_minordpo.errors import UserError
from nemo_minordpo.prepare.corruption import LONGEST_NUMBER, NUMBER, Corruption, near_wrong_numbers

# A number after "=" is a result if it ends that side of the equation: no operand, unit letter, power or brace
# follows it. "= 4 slices", "= 7$", "= 50\%" are results; "= 2 \cdot 3", "= 3x", "= 4 x 5", "= 1{,}000" are not.
_RESULT = re.compile(
    rf"(?<![<>=!:])=\s*(?:\\?\$\s*)?(?P<number>-?(?:{NUMBER}))"
    r"(?![0-9]|[.,][0-9]|,\\!|[A-Za-z_{(]|\s*(?:[-+*/^(\u00d7\u00f7\u2212]|[xX]\s*[0-9(])"
    r"|\s*\\(?!text|mathrm|mbox|q?quad|implies|Rightarrow|end)[A-Za-z])"
)
_OPERATION = re.compile(
    r"[0-9)}\]%$A-Za-z]\s*(?:[-+*/^\u00d7\u00f7\u2212]|\\(?:times|cdot|div)(?![a-z]))\s*[-0-9({\[$\\A-Za-z.]"
    r"|[0-9)]\s*[xX]\s*[0-9(]|\\d?frac|\\sqrt|\\d?binom|[0-9)]!"
)
# A dollar sign begins a formula, unless it precedes an amount inside one.
_SIDE_START = re.compile(r"[=\n;]|(?<![-+*/(])(?<![-+*/(] )\$|[.:,]\s|\\\[|\\\(")
_STATED = re.compile(r"####.*|answer is\b.*", re.IGNORECASE)
_BOXED = re.compile(r"\\f?boxed\s*\{")
_FINAL = re.compile(rf"-?(?:{NUMBER})")


def corrupt_result(answer: str, *, seed: int, row: int) -> Corruption:
    r"""Change the result of one intermediate calculation to a wrong number close to it.

    Trailing results that equal the final answer are unchanged unless there are no others. Results of calculations
    ("3 + 4 = 7") are preferred; if there are none, any number after "=" counts. The draw depends only on `seed` and
    `row`.

    Args:
        answer: ends with "The answer is: ...", "#### ..." or \boxed{...}, which stay unchanged.
        seed: seed of the data set.
        row: position of the row in its file.

    Raises:
        UserError: there is nothing to corrupt; the message says why.
    """
    final = stated_answer(answer)
    stated = final_spans(answer)
    results = [
        found
        for found in _RESULT.finditer(answer)
        if len(found["number"]) <= LONGEST_NUMBER
        and not any(start <= found.start("number") < end for start, end in stated)
    ]
    results = [found for found in results if _is_calculated(answer, found)] or results
    intermediate = list(results)
    while intermediate and _same_value(intermediate[-1]["number"], final):
        intermediate.pop()
    if not results:
        raise UserError("no equation with a number as its result: there is no calculation to corrupt")
    draw = random.Random(f"{seed}:{row}")
    chosen = draw.choice(intermediate or results[-1:])
    wrong = draw.choice(near_wrong_numbers(chosen["number"]))
    corrupted = answer[: chosen.start("number")] + wrong + answer[chosen.end("number") :]
    return Corruption(answer=corrupted, calculation=results.index(chosen), right=chosen["number"], wrong=wrong)


def stated_answer(answer: str) -> str:
    """The text of the final answer: the last one stated.

    Raises:
        UserError: there is none.
    """
    spans = final_spans(answer)
    if not spans:
        raise UserError("no final answer: neither 'The answer is', nor '####', nor \\boxed{}")
    start, end = spans[-1]
    return answer[start:end]


def final_spans(answer: str) -> list[tuple[int, int]]:
    """(start, end) of each place that states the final answer, in order."""
    spans = [found.span() for found in _STATED.finditer(answer)]
    for found in _BOXED.finditer(answer):
        depth, end = 1, found.end()
        while end < len(answer) and depth:
            depth += {"{": 1, "}": -1}.get(answer[end], 0)
            end += 1
        spans.append((found.start(), end))
    return sorted(spans)


def _is_calculated(answer: str, result: re.Match[str]) -> bool:
    """Whether the other side of the equation contains an operation."""
    before = answer[max(0, result.start() - 200) : result.start()]
    start = max((found.end() for found in _SIDE_START.finditer(before)), default=0)
    return _OPERATION.search(before, start) is not None


def _same_value(number: str, final: str) -> bool:
    stated = _FINAL.findall(final)
    return bool(stated) and Decimal(stated[-1].replace(",", "")) == Decimal(number.replace(",", ""))
