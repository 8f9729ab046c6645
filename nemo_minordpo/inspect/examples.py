"""Which pairs are shown: the worst of each measure, and the first of each flag."""

from dataclasses import dataclass
from html import escape

import numpy as np

from nemo_minordpo.inspect.duplicates import NO_PAIR
from nemo_minordpo.inspect.kinds import FLAGS, MEASURES
from nemo_minordpo.inspect.marked import end_of, marked
from nemo_minordpo.inspect.scripts import SCRIPTS
from nemo_minordpo.inspect.table import PairTable

_MOST = 5  # of each kind
# measure -> the ends that are shown, with their names; -1: lowest first
_ENDS = (
    ("edit_distance", 1, "closest responses"),
    ("length_ratio", -1, "chosen response longest against the rejected one"),
    ("length_ratio", 1, "chosen response shortest against the rejected one"),
    ("logp_margin", 1, "chosen response least likely against the rejected one"),
    ("ches_per_token", -1, "highest CHES per token"),
)
# shown by the two flags that each of them joins
_JOINED = ("refusal", "cut")


@dataclass(frozen=True, kw_only=True)
class Group:
    """Pairs of one kind; flag is None for a measure."""

    title: str
    measure: str | None = None
    flag: str | None = None
    count: int | None = None  # pairs with the flag
    pairs: list[int]


def groups(table: PairTable) -> list[Group]:
    """Flags that occur, then the ends of the measures."""
    found = []
    for name, column in table.flags.items():
        (pairs,) = np.nonzero(column)
        if len(pairs) and name not in _JOINED:
            found.append(
                Group(title=f"{name}: {FLAGS[name].text}", flag=name, count=len(pairs), pairs=pairs[:_MOST].tolist())
            )
    for name, sign, title in _ENDS:
        if name in table.values:
            column = sign * table.values[name]
            order = np.argsort(column, kind="stable")  # NaN comes last
            shown = [int(pair) for pair in order[:_MOST] if not np.isnan(column[pair])]
            found += [Group(title=title, measure=name, pairs=shown)] if shown else []
    return found


def examples_section(table: PairTable) -> str:
    """HTML that needs no script: one foldable part per kind."""
    return "".join(_group(table, one) for one in groups(table))


def _group(table: PairTable, group: Group) -> str:
    number = "" if group.count is None else f" ({len(group.pairs):,} of {group.count:,})"
    body = "".join(_example(table, group, pair) for pair in group.pairs)
    return f"<details><summary>{escape(group.title)}{number}</summary>{body}</details>"


def _example(table: PairTable, group: Group, number: int) -> str:
    pair = table.pair(number)
    facts = [escape(f"{name} {table.values[name][number]:.4g}") for name in _facts(table, group)]
    facts += [escape("scripts: " + ", ".join(SCRIPTS[place] for place in table.scripts[number]))] * (
        group.flag == "other_script"
    )
    like = table.like(group.flag, number) if group.flag else ""
    facts += [escape(f"like {like}")] if like else []
    chosen, rejected = marked(pair.chosen_response, pair.rejected_response)
    answers = _side_by_side(("chosen", chosen), ("rejected", rejected))
    head = f"<p><b>{escape(table.place(number))}</b> <span class=quiet>{'; '.join(facts)}</span></p>"
    return f"<article class=problem>{head}{_prompt(table, group, number, pair.prompt)}{answers}</article>"


def _facts(table: PairTable, group: Group) -> list[str]:
    names = dict.fromkeys([group.measure, "edit_distance", "chosen_characters", "rejected_characters", "logp_margin"])
    return [name for name in names if name in MEASURES and name in table.values]


def _prompt(table: PairTable, group: Group, number: int, prompt: str) -> str:
    """The prompt; beside what it is like, if the flag is about another pair or a question."""
    if group.flag is not None and FLAGS[group.flag].needs == "--test" and table.tests is not None:
        question = end_of(table.tests.text(int(table.test[number])))
        return _side_by_side(("question of the test set", question), ("prompt", end_of(prompt)))
    earlier = table.earlier[group.flag][number] if group.flag in table.earlier else NO_PAIR
    if earlier == NO_PAIR:
        return f"<div class=answer><h4>prompt</h4>{end_of(prompt)}</div>"
    before, now = marked(table.pair(int(earlier)).prompt, prompt)
    return _side_by_side(("prompt of the earlier pair", before), ("prompt", now))


def _side_by_side(*blocks: tuple[str, str]) -> str:
    inner = "".join(f'<div class="answer {name}"><h4>{name}</h4>{body}</div>' for name, body in blocks)
    return f"<div class=answers>{inner}</div>"
