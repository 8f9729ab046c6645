"""Make wrong answers close to right ones: change one intermediate result of a GSM8K answer.

As in Pal et al. 2024 (Smaug, DPO-Positive), the rejected response is the chosen one with one wrong intermediate
calculation; every other character stays, including the final answer. The responses then differ in a few per cent of
their characters, which is where DPO pushes both down.
"""

import random
import re
from dataclasses import dataclass
from decimal import Decimal

from nemo_minordpo.core.gsm8k import same_number
from nemo_minordpo.errors import UserError

NUMBER = r"(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+"
# `<<48/2=24>>24`: the expression, its result, and the result again as the reader sees it.
_CALCULATION = re.compile(
    rf"<<(?P<expression>[^<>\n]*=)(?P<result>[^<>=\n]*)>>(?P<gap>[ ]?[$]?)(?P<shown>-?(?:{NUMBER}))?"
)
# A wrong result is off by at most a tenth of the right one, but by up to 2 units of the last significant place in any
# case, and never by more than 20 units.
_SHARE, _FEWEST_STEPS, _MOST_STEPS = 10, 2, 20
LONGEST_NUMBER = 100  # characters; nobody writes a longer result by hand


@dataclass(frozen=True, kw_only=True)
class Corruption:
    """An answer with one wrong calculation; `calculation` is its index among the answer's marks, from 0."""

    answer: str
    calculation: int
    right: str
    wrong: str


def corrupt_calculation(answer: str, *, seed: int, row: int) -> Corruption:
    """Change the result of one intermediate calculation to a wrong number close to it, in its mark and directly after.

    For example, `<<48/2=24>>24` becomes `<<48/2=25>>25`. The last calculation, which gives the final answer, is
    unchanged unless it is the only one. The draw depends only on `seed` and `row`.

    Args:
        answer: with calculator marks, as in GSM8K.
        seed: seed of the data set.
        row: position of the row in its file, so that neither the order nor other rows matter.

    Raises:
        UserError: there is nothing to corrupt; the message says why.
    """
    marks = list(_CALCULATION.finditer(answer))
    if not marks:
        raise UserError("no calculator mark (<<...=...>>): there is no calculation to corrupt")
    intermediate = list(enumerate(marks))[: max(1, len(marks) - 1)]
    shown = [(index, mark) for index, mark in intermediate if _shows_its_result(mark)]
    if not shown:
        raise UserError("no intermediate calculation shows its result directly after its mark")
    draw = random.Random(f"{seed}:{row}")
    index, mark = draw.choice(shown)
    wrong = draw.choice(near_wrong_numbers(mark["shown"]))
    changed = f"<<{mark['expression']}{wrong.replace(',', '')}>>{mark['gap']}{wrong}"
    corrupted = answer[: mark.start()] + changed + answer[mark.end() :]
    return Corruption(answer=corrupted, calculation=index, right=mark["shown"], wrong=wrong)


def near_wrong_numbers(number: str) -> list[str]:
    """The wrong numbers that may replace `number`: close to it, with its sign, decimal places and thousands separators.

    They differ by at most a tenth (at most 20 units of the last significant place), or by two units if that is more.
    Trailing zeros beyond two digits are not significant: 24 gives 22, 23, 25, 26, and 300 gives 270 to 330 in tens.

    Args:
        number: decimal digits, with or without sign, thousands separators and decimal point.
    """
    sign, digits = ("-", number[1:]) if number.startswith("-") else ("", number)
    whole, point, fraction = digits.replace(",", "").partition(".")
    significand = int(whole + fraction)
    unit = _unit(significand)
    steps = min(max(_FEWEST_STEPS, significand // unit // _SHARE), _MOST_STEPS)
    near = [significand + unit * step for step in range(-steps, steps + 1) if step != 0]
    separator = "," if "," in digits else ""
    found = []
    for value in near:
        if value <= 0:
            continue
        wrong_whole, wrong_fraction = divmod(value, 10 ** len(fraction))
        shown_whole = "" if wrong_whole == 0 and not whole else f"{wrong_whole:{separator}}"  # ".4" has no leading 0
        shown_fraction = f"{wrong_fraction:0{len(fraction)}}" if point else ""
        found.append(f"{sign}{shown_whole}{point}{shown_fraction}")
    return found


def _unit(significand: int) -> int:
    """The power of ten of the last nonzero digit, at most that of the second digit from the left."""
    digits = str(significand)
    trailing_zeros = len(digits) - len(digits.rstrip("0"))
    return 10 ** max(0, min(trailing_zeros, len(digits) - 2))


def _shows_its_result(mark: re.Match[str]) -> bool:
    result = mark["result"].replace(",", "").replace("$", "").strip()
    if mark["shown"] is None or max(len(mark["shown"]), len(result)) > LONGEST_NUMBER:
        return False
    if not re.fullmatch(rf"-?(?:{NUMBER})", result):
        return False
    return same_number(result, str(Decimal(mark["shown"].replace(",", ""))))
