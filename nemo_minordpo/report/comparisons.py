"""Which models differ: paired tests on the same problems, with Holm's correction over all of the report's.

Every setting is compared with the base model and, at the same beta and learning rate, with every other loss. With one
seed, McNemar's exact test is used; with several, a test over both seeds and problems (core/paired.py).
"""

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from nemo_minordpo.core.paired import Difference, holm, mcnemar, over_seeds_and_problems
from nemo_minordpo.report.answers import FLEXIBLE, STRICT, Answers, Problem, common_problems
from nemo_minordpo.report.axes import Grid, Setting, number
from nemo_minordpo.report.summary import listed
from nemo_minordpo.report.table import BASE, Table, csv_text

SIGNIFICANT = 0.05
_FEWEST_PROBLEMS = 2  # a variance needs two
_Matched = list[tuple[Answers, Answers]]  # one pair per seed


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two models on the same problems; counts are over all seeds."""

    rule: str  # by which answers are right
    first: Setting
    second: Setting | None  # None = the base model
    num_seeds: int
    num_problems: int
    only_first: int  # right answers to problems that only the first model solved
    only_second: int
    difference: Difference
    adjusted_p: float = 1.0  # Holm's

    @property
    def names(self) -> tuple[str, str]:
        return self.first.loss, BASE if self.second is None else self.second.loss

    @property
    def verdict(self) -> str:
        if self.adjusted_p > SIGNIFICANT:
            return "not significant"
        return "higher" if self.difference.value > 0 else "lower"

    @property
    def place(self) -> str:
        return f"lr {number(self.first.learning_rate)}, beta {number(self.first.beta)}"


def comparisons(grid: Grid) -> list[Comparison]:
    """All comparisons for which there are answers to the same problems.

    Flexible accuracies are compared only if some answer of the report is right by that rule alone.
    """
    pairs: list[tuple[Setting, Setting | None]] = [(setting, None) for setting in grid.settings]
    for settings in grid.places().values():
        pairs += [(second, first) for first, second in itertools.combinations(settings, 2)]
    matched = [(first, second, _matched(grid, first, second)) for first, second in pairs]
    used = [answers for *_, pairs_of_seeds in matched for pair in pairs_of_seeds for answers in pair]
    rules = [STRICT] if all(answers.is_judged_alike for answers in used) else [STRICT, FLEXIBLE]
    found = [one for rule in rules for first, second, seeds in matched for one in _compared(rule, first, second, seeds)]
    adjusted = holm([one.difference.p for one in found])
    return [replace(one, adjusted_p=p) for one, p in zip(found, adjusted, strict=True)]


def _matched(grid: Grid, first: Setting, second: Setting | None) -> _Matched:
    """The answers of both, seed by seed; the base model has the same answers for every seed."""
    own = _by_seed(first)
    if second is None:
        return [] if grid.base_answers is None else [(answers, grid.base_answers) for answers in own.values()]
    other = _by_seed(second)
    return [(answers, other[seed]) for seed, answers in own.items() if seed in other]


def _by_seed(setting: Setting) -> dict[tuple[int | None, int], Answers]:
    """(seed, how many runs with this seed came before) -> answers."""
    found: dict[tuple[int | None, int], Answers] = {}
    seen: Counter[int | None] = Counter()
    for run in setting.runs:
        if run.answers is not None:
            found[run.seed, seen[run.seed]] = run.answers
            seen[run.seed] += 1
    return found


def _compared(rule: str, first: Setting, second: Setting | None, seeds: _Matched) -> list[Comparison]:
    problems = common_problems([answers for pair in seeds for answers in pair]) if seeds else []
    if len(problems) < _FEWEST_PROBLEMS:
        return []
    own, other = (_outcomes(rule, [pair[side] for pair in seeds], problems) for side in (0, 1))
    only_first, only_second = int((own & ~other).sum()), int((other & ~own).sum())
    if len(seeds) == 1:
        difference = mcnemar(only_first=only_first, only_second=only_second, total=len(problems))
    else:
        difference = over_seeds_and_problems(own, other)
    return [
        Comparison(
            rule=rule, first=first, second=second, num_seeds=len(seeds), num_problems=len(problems),
            only_first=only_first, only_second=only_second, difference=difference,
        )
    ]  # fmt: skip


def _outcomes(rule: str, answers: Sequence[Answers], problems: Sequence[Problem]) -> np.ndarray:
    """Whether each answer is right: [seeds, problems]."""
    return np.array([[one.right[rule][problem] for problem in problems] for one in answers])


def sentences(found: list[Comparison]) -> list[str]:
    """Which differences are significant, and which are not; one sentence per rule and verdict."""
    lines = []
    for rule in dict.fromkeys(one.rule for one in found):
        of_rule = [one for one in found if one.rule == rule]
        heading = (
            f"{rule.capitalize()} accuracy, paired tests on the same problems, at 5 % after Holm's correction for "
            f"{len(found)} comparisons"
        )
        above = _groups([one for one in of_rule if one.verdict == "higher"], of_rule, " above ")
        below = _groups([one for one in of_rule if one.verdict == "lower"], of_rule, " below ")
        neither = _groups([one for one in of_rule if one.verdict == "not significant"], of_rule, " and ")
        lines.append(f"{heading}, significant: {'; '.join(above + below) or 'no difference'}.")
        if neither:
            lines.append(f"{rule.capitalize()} accuracy, not significant: {'; '.join(neither)}.")
    return lines


def _groups(chosen: list[Comparison], of_rule: list[Comparison], word: str) -> list[str]:
    """The chosen comparisons by the two that are compared, with the settings if not all are among them."""
    total = Counter(one.names for one in of_rule)
    places: dict[tuple[str, str], list[str]] = {}
    for one in chosen:
        places.setdefault(one.names, []).append(one.place)
    return [
        word.join(names)
        + ("" if total[names] == 1 else f" at {len(those)} of {total[names]} settings")
        + (f" ({listed(those)})" if len(those) < total[names] and len(those) <= 2 else "")
        for names, those in places.items()
    ]


def unpaired(grid: Grid, found: list[Comparison]) -> list[str]:
    """Notes on scores that no paired test uses, and on seeds that only one of two settings has."""
    used = {id(setting) for one in found for setting in (one.first, one.second)}
    without = [run.name for run in grid.runs if run.score is not None and run.answers is None]
    if grid.base is not None and grid.base_answers is None:
        without.insert(0, BASE)
    notes = []
    if without:
        notes.append(f"not in the paired tests, because their answers were not read: {_some(without)}")
    alone = [one.name for one in grid.settings if id(one) not in used and any(run.answers for run in one.runs)]
    if alone:
        notes.append(f"not in the paired tests, because no other model has the same seed and problems: {_some(alone)}")
    fewer = [
        f"{one.first.name} and {one.names[1]} ({one.num_seeds})"
        for one in found
        if one.second is not None and one.num_seeds < max(len(_by_seed(one.first)), len(_by_seed(one.second)))
    ]
    if fewer:
        notes.append(f"compared only on the seeds that both have: {_some(list(dict.fromkeys(fewer)))}")
    return notes


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def comparisons_table(found: list[Comparison]) -> Table:
    """One line per comparison."""
    heads = [
        "model", "against", "at 5 %", "difference, points (95 % interval)", "p", "p after Holm's correction",
        "only the first right", "only the second right", "accuracy", "seeds", "problems",
    ]  # fmt: skip
    rows = [
        [
            one.first.name, one.names[1], one.verdict, _points(one.difference), f"{one.difference.p:.2g}",
            f"{one.adjusted_p:.2g}", str(one.only_first), str(one.only_second), one.rule, str(one.num_seeds),
            str(one.num_problems),
        ]
        for one in found
    ]  # fmt: skip
    return Table(heads, rows)


def comparisons_csv(found: list[Comparison]) -> str:
    """The same, unrounded."""
    header = [
        "model", "against", "accuracy", "seeds", "problems", "difference", "low", "high", "only_first", "only_second",
        "p", "p_holm", "verdict",
    ]  # fmt: skip
    rows = [
        [
            one.first.name, one.names[1], one.rule, one.num_seeds, one.num_problems, one.difference.value,
            one.difference.low, one.difference.high, one.only_first, one.only_second, one.difference.p, one.adjusted_p,
            one.verdict,
        ]
        for one in found
    ]  # fmt: skip
    return csv_text(header, rows)


def _points(one: Difference) -> str:
    return f"{100 * one.value:+.1f} ({100 * one.low:+.1f} to {100 * one.high:+.1f})"
