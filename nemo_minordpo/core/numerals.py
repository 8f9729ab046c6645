r"""Read numbers in prose, Markdown and LaTeX as a person does: completely or not at all.

`plain` strips the markup; in the remaining text, a numeral is

    numeral  := sign? currency* sign? (mixed | fraction | power | decimal) scale*
    decimal  := (grouped | digits) ("." digits)? exponent? | "." digits exponent?
    grouped  := 1,234,567 | 1 234 567 | 1'234'567 | 1_234_567 | 12,34,567 (Indian)
    exponent := "e" integer | "x 10^" integer;    power := "10^" integer
    fraction := digits "/" digits;    mixed := digits " " ("and ")? fraction
    scale    := hundred | thousand | million | billion | trillion

A numeral that continues in a way unknown to the grammar ("10:30", "1,2345", "3,5", "1.234,56", "1.2.3", "2^3", "5k",
"9\pi", "2024-05-06", "4h30", "5 hours and 30 minutes") has no value: part of it would be a different number. Neither
has a fraction over 0 or one not in lowest terms ("12/4"), which is a division yet to be done. Digits after a letter
("x2", "GPT4") belong to a name and are no numeral. "1.234" has a decimal point, "1,234" a group. A percent sign is a
unit ("50%" is 50), and so is "dozen".
"""

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

CURRENCY = r"$\u20ac\u00a3\u00a5\u20b9\u20a9\u20bd\u20b1\u20aa\u0e3f\u20ba\u20a6"
# Longer runs of digits come from a model repeating itself.
_MOST_DIGITS = 300
# Replaces markup: white space to `\s`, but not the blank that may separate groups of digits.
_MARK = "\x1f"
_SUPERSCRIPTS = "\u2070\u00b9\u00b2\u00b3\u2074\u2075\u2076\u2077\u2078\u2079\u207b\u207a"
_FROM_SUPERSCRIPT = str.maketrans(_SUPERSCRIPTS, "0123456789-+")
_CHARACTERS = (
    {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)}  # full width
    | dict.fromkeys(map(ord, "\u00a0\u2007\u2008\u2009\u202f\u3000"), " ")
    | dict.fromkeys(map(ord, "\u2010\u2011\u2012\u2013\u2212"), "-")
    | dict.fromkeys(map(ord, '`"\u201c\u201d\u00ab\u00bb'), _MARK)
    | dict.fromkeys(map(ord, "\u00b7\u2219\u22c5\u2715\u2716"), "\u00d7")
    | {0x2018: "'", 0x2019: "'", 0x2044: "/", 0x2217: "*", 0x2026: "..."}
)
_FRACTION_WORDS = {"half": "1/2", "third": "1/3", "quarter": "1/4", "fourth": "1/4"}
_VULGAR = "\u00bc-\u00be\u2150-\u215e"
# Applied in this order: specific LaTeX commands first, then all remaining commands, braces and Markdown.
_MARKUP: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern), put)
    for pattern, put in (
        (r"</?[A-Za-z][A-Za-z0-9]*(?:\s+[a-z-]+=[^<>\n]*)?\s*/?>", _MARK),
        (r"(?<=[0-9])(?=\\[dt]?frac)", " "),
        (r"\\[dt]?frac\s*([0-9])\s*([0-9])", r"\1/\2"),
        (r"\\[dt]?frac\s*\{\s*([0-9]+)\s*\}\s*\{\s*([0-9]+)\s*\}", r"\1/\2"),
        (r"\\[dt]?frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}", "(\\1) \u00f7 (\\2)"),
        (r"\\(?:times|cdot)(?![A-Za-z])", "\u00d7"),
        (r"\\l?dots(?![A-Za-z])", "..."),
        (r"\\div(?![A-Za-z])", "\u00f7"),
        (r"\\approx(?![A-Za-z])", "\u2248"),
        (r"\\pi(?![A-Za-z])", "\u03c0"),
        (r"\\sqrt(?![A-Za-z])\s*\{?", "\u221a"),
        (r"\.?\\(?:overline|bar|dot)(?![A-Za-z])", "^"),  # 0.333...: an unreadable numeral, like 2^3
        (r"\^\s*\{?\s*\\circ\s*\}?", "\u00b0"),
        (r"\{,\}", ","),
        (r"\\!", ""),
        (r"\\(?:[,;: ]|q?quad(?![A-Za-z]))", " "),
        (r"\\([%$#&_])", r"\1"),
        (r"(?<=[A-Za-z])(\}?)\^\{?[23]\}?", r"\1"),  # m^2: a unit's power is not a number
        (r"\^\s*\{\s*([-+]?[0-9]+)\s*\}", r"^\1"),
        (r"\\[A-Za-z]+|\\[()\[\]]|[{}]", _MARK),
        (r"(?<=[0-9])\*\*(?=[0-9])", "^"),
        (r"(?<=[0-9])!(?=[ ]*[=+*/])", "^"),  # a factorial
        (r"\*\*|__", _MARK),
        (r"\b(?:equals|(?:is )?equal to)\b", "="),
        (rf"\b[Nn]egative (?=[{CURRENCY}]?\.?[0-9])", "-"),
        (rf"\b[A-Z]{{1,3}}(?=[{CURRENCY}])", ""),
        (r"\b(?:Rs\.?|INR|USD|EUR|GBP|JPY|CNY|CAD|AUD|CHF)\s*(?=-?\.?[0-9])", "$"),
    )
)
_AND_A_HALF = re.compile(rf"(?<=[0-9])\s+and\s+(?:a|one)\s+({'|'.join(_FRACTION_WORDS)})\b", re.IGNORECASE)

_GROUPED = (
    r"[1-9][0-9]{0,2}(?P<sep>[,' _])[0-9]{3}(?:(?P=sep)[0-9]{3})*(?![0-9])"
    r"|[1-9][0-9]?(?:,[0-9]{2})+,[0-9]{3}(?![0-9])"
)
_SCALES = {"hundred": 10**2, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
# A quantity in two units, the larger first: neither number is the whole quantity.
_TWO_UNITS = "|".join(
    rf"(?:{large})[ ,]*(?:and[ ]+)?[0-9][0-9.,]*[ ]?(?:{small})\b"
    for large, small in (
        ("years?", "months?"), ("weeks?", "days?"), ("days?", "hours?|hrs?"), ("hours?|hrs?|h", "minutes?|mins?|m"),
        ("minutes?|mins?", "seconds?|secs?"), ("(?:dollars?|euros?|pounds?)?", "cents?|pence"),
        ("feet|foot|ft", "inch(?:es)?|in"), ("pounds?|lbs?", "ounces?|oz"),
    )
)  # fmt: skip
_AFTER_DECIMALS = "|".join(rf"(?<=\.[0-9]{{{count}}})" for count in range(1, 7))
_NUMERAL = re.compile(
    rf"""
    # Not after a letter (except "9x2") and not in the middle of another number.
    (?:(?<![A-Za-z0-9\u221a\u00b1])(?<![0-9][.,':/^_~])(?<![A-Za-z]_)|(?<=[0-9][xX])|(?<=[0-9][ ][xX]))
    # A minus is a sign only if no operand precedes it: "10-3" ends in 3, "is -3" in -3.
    (?P<sign>(?<![\w)%\]|-])(?<![0-9)%][ ])[-+])?(?:(?P<money>[{CURRENCY}]+)[ ]?(?P<behind>-)?)?
    (?:
        (?P<whole>[0-9]+)[ ]+(?:and[ ]+)?(?P<part>[0-9]+/[0-9]+)
        |(?P<fraction>[0-9]+/[0-9]+)
        |10\^(?P<power>[-+]?[0-9]{{1,2}})(?![0-9])
        |(?P<decimal>(?:{_GROUPED}|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+)
         (?:(?:[eE]|[ ]?[xX\u00d7*][ ]?10\^)(?P<exponent>[-+]?[0-9]{{1,2}})(?![0-9]))?
    )
    (?P<scales>(?:[ -]?(?i:{"|".join(_SCALES)})s?\b)+)?
    (?P<unread>
        (?:[.,':/_~]?[0-9])+
        |[ {_MARK}]*[\^\u03c0\u221a\u00b1][ ]?[0-9]*|(?:[kKMB]|bn|(?(money)[mb]|(?!)))(?![A-Za-z])
        |(?:{_AFTER_DECIMALS})\.{{3}}
        |[ -]*(?i:(?:ten|hundred|thousand|million)ths?|squared|cubed|to[ ]the[ ]power(?:[ ]of[ ][0-9]+)?)\b
        |(?(scales)[ ](?i:and[ ])?[0-9][0-9.,]*(?i:[ -]?(?:{"|".join(_SCALES)})\b)?|(?!))
        |(?![xX][0-9])[A-Za-z]+[0-9]\w*
        |-[0-9]+/[0-9]+|(?:-[0-9]+){{2,}}|[ ]*(?i:and[ ]+)?(?i:{_TWO_UNITS})
    )?
    """,
    re.VERBOSE,
)


@dataclass(frozen=True, kw_only=True)
class Numeral:
    """A number in a text, from `start` to `end`."""

    start: int
    end: int
    value: Fraction | None  # None = unreadable
    is_calculation: bool  # contains an operator, e.g. a fraction or power


def plain(text: str) -> str:
    """Strip LaTeX, Markdown and HTML, and turn the characters that numerals use into ASCII."""
    text = text.translate(_CHARACTERS)
    for pattern, put in _MARKUP:
        text = pattern.sub(put, text)
    text = re.sub(r"[\s$]{3,}", _short_gap, text)
    text = _AND_A_HALF.sub(lambda found: " " + _FRACTION_WORDS[found[1].lower()], text)
    text = re.sub(rf"(?<=[0-9])[{_SUPERSCRIPTS}]+", lambda found: "^" + found[0].translate(_FROM_SUPERSCRIPT), text)
    text = re.sub(rf"(?<=[0-9])(?=[{_VULGAR}])", " ", text)
    return re.sub(f"[{_VULGAR}]", lambda found: unicodedata.normalize("NFKC", found[0]).replace("\u2044", "/"), text)


def numerals(text: str) -> Iterator[Numeral]:
    """All numerals in a plain text, in order."""
    return map(_numeral, _NUMERAL.finditer(text))


def numeral_at(text: str, start: int) -> Numeral | None:
    """The numeral that begins at `start` in a plain text."""
    found = _NUMERAL.match(text, start)
    return None if found is None else _numeral(found)


def normalised(value: Fraction) -> str:
    """The canonical way to write a number: "1234.5", "-3", "0.5", and "1/3" if no decimal is exact."""
    twos, fives, rest = 0, 0, value.denominator
    while rest % 2 == 0:
        twos, rest = twos + 1, rest // 2
    while rest % 5 == 0:
        fives, rest = fives + 1, rest // 5
    if rest != 1:
        return str(value)
    places = max(twos, fives)
    digits = str(abs(value.numerator) * 10**places // value.denominator).rjust(places + 1, "0")
    sign, point = "-" if value < 0 else "", len(digits) - places
    return f"{sign}{digits[:point]}" + (f".{digits[point:]}" if places else "")


def _short_gap(found: re.Match[str]) -> str:
    # Keeps patterns that contain gaps from taking quadratic time on long runs of blanks.
    return ("\n" if "\n" in found[0] else _MARK) + ("$" if "$" in found[0] else "")


def _numeral(found: re.Match[str]) -> Numeral:
    is_calculation = found["fraction"] is not None or any(sign in (found["unread"] or "") for sign in "/^\u221a")
    known = found["unread"] is None and found.end() - found.start() <= _MOST_DIGITS
    return Numeral(
        start=found.start(), end=found.end(), value=_value(found) if known else None, is_calculation=is_calculation
    )


def _value(found: re.Match[str]) -> Fraction | None:
    size = _size(found)
    if size is None:
        return None
    for scale in re.findall("|".join(_SCALES), (found["scales"] or "").lower()):
        size *= _SCALES[scale]
    return -size if (found["sign"] == "-") != (found["behind"] == "-") else size


def _size(found: re.Match[str]) -> Fraction | None:
    if found["power"]:
        return Fraction(10) ** int(found["power"])
    if found["decimal"]:
        return Fraction(re.sub(r"[,' _]", "", found["decimal"])) * Fraction(10) ** int(found["exponent"] or 0)
    above, below = map(int, (found["fraction"] or found["part"]).split("/"))
    if below == 0:
        return None
    ratio = Fraction(above, below)
    if found["whole"]:
        return int(found["whole"]) + ratio if ratio < 1 else None
    return ratio if ratio.denominator == below and below > 1 else None
