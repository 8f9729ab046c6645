"""Rules that choose pairs: a flag, or a measure against a number.

    RULE    = FLAG | MEASURE OPERATOR NUMBER        refusal     edit_distance<0.02     length_ratio >= 3
    OPERATOR = < | <= | > | >=

A pair stays if it meets every --keep rule and no --drop rule. A measure that is not known for a pair meets no rule.
"""

import math
import operator
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from nemo_minordpo.errors import UserError
from nemo_minordpo.inspect.kinds import FLAGS, MEASURES
from nemo_minordpo.inspect.table import PairTable

_OPERATORS = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}
_RULE = re.compile(r"\s*(\w+)\s*(?:(<=|>=|<|>)\s*(\S+))?\s*")


@dataclass(frozen=True, kw_only=True)
class Rule:
    """A rule; a flag has neither operator nor number."""

    name: str
    operator: str = ""
    number: float = math.nan

    def __str__(self) -> str:
        return self.name if not self.operator else f"{self.name}{self.operator}{self.number:g}"

    def meets(self, table: PairTable) -> np.ndarray:
        """[N], bool."""
        if not self.operator:
            return table.flags[self.name]
        return _OPERATORS[self.operator](table.values[self.name], self.number)


def parse_rule(text: str, *, known: set[str]) -> Rule:
    """Read a rule.

    Args:
        text: as the user gave it.
        known: measures and flags that the other options make known.

    Raises:
        UserError: it is not a rule, or of something that does not exist or is not known.
    """
    found = _RULE.fullmatch(text)
    if found is None:
        raise UserError(
            f"rule {text!r}: write a flag (refusal), or a measure, <, <=, > or >=, and a number (length_ratio>3)"
        )
    name, sign, number = found.groups()
    kind = MEASURES.get(name) or FLAGS.get(name)
    if kind is None:
        raise UserError(
            f"rule {text!r}: {name!r} is unknown\nmeasures: {', '.join(MEASURES)}\nflags: {', '.join(FLAGS)}"
        )
    if name not in known:
        raise UserError(f"rule {text!r}: {name} is known only with {kind.needs}")
    if (name in MEASURES) != (sign is not None):
        raise UserError(
            f"rule {text!r}: {name} is a "
            + ("measure: compare it with a number" if sign is None else "flag: leave out the number")
        )
    return Rule(name=name, operator=sign or "", number=_number(text, number) if sign else math.nan)


def _number(rule: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UserError(f"rule {rule!r}: {text!r} is not a finite number")
    return value


def reasons(table: PairTable, *, keep: Sequence[Rule], drop: Sequence[Rule]) -> list[str | None]:
    """Why each pair goes; None = it stays. The first rule that it fails counts, --drop before --keep."""
    found: list[str | None] = [None] * len(table)
    failed = [(f"--drop {rule}", rule, rule.meets(table)) for rule in drop]
    failed += [(f"not --keep {rule}", rule, ~rule.meets(table)) for rule in keep]
    for reason, rule, pairs in reversed(failed):
        for pair in np.nonzero(pairs)[0].tolist():
            found[pair] = reason + _detail(table, rule, pair)
    return found


def _detail(table: PairTable, rule: Rule, pair: int) -> str:
    """What the pair has instead: its value, or the pair or question that it is like."""
    if rule.operator:
        value = table.values[rule.name][pair]
        return ": not known for this pair" if math.isnan(value) else f": it is {value:.6g}"
    like = table.like(rule.name, pair)
    return f": {like}" if like else ""
