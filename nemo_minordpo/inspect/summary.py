"""What was found, in sentences and tables, for the terminal and the page."""

from collections import Counter
from collections.abc import Callable

import numpy as np

from nemo_minordpo.core.intervals import mean_interval, wilson_interval
from nemo_minordpo.inspect.kinds import FLAGS, MEASURES, MODEL, TEST, TOKENIZER
from nemo_minordpo.inspect.scripts import SCRIPTS
from nemo_minordpo.inspect.table import PairTable
from nemo_minordpo.report.table import Table

_UNITS = ("characters", "words", "tokens")
_SHARES = ("edit_distance", "shared_prefix")
_MOST_SCRIPTS = 12
_NAME_WIDTH = 30


def sentences(table: PairTable) -> list[str]:
    """The findings that need no table."""
    lines = [
        f"{len(table):,} pairs in {len(table.files)} file{'s' * (len(table.files) > 1)}; "
        f"{len(table.invalid):,} line{'s are not pairs' if len(table.invalid) != 1 else ' is not a pair'}."
    ]
    lines += [_length_sentence(table, unit) for unit in _units(table)]
    if "logp_margin" in table.values:
        margin = _known(table.values["logp_margin"])
        lines.append(
            f"The chosen response is less likely than the rejected one in {_rate((margin < 0).sum(), len(margin))} of "
            f"{len(margin):,} scored pairs."
        )
    return lines


def _length_sentence(table: PairTable, unit: str) -> str:
    longer, _, difference = _length_cells(table, unit)
    return f"The chosen response has more {unit} in {longer} of the pairs; mean difference {difference}."


def length_table(table: PairTable) -> Table:
    """How often, and by how much, the chosen response is longer."""
    heads = ["unit", "chosen longer", "equal", "mean of chosen - rejected"]
    return Table(heads, [[unit, *_length_cells(table, unit)] for unit in _units(table)])


def _units(table: PairTable) -> list[str]:
    return [unit for unit in _UNITS if np.isfinite(table.values.get(f"chosen_{unit}", np.array([np.nan]))).any()]


def _length_cells(table: PairTable, unit: str) -> list[str]:
    difference = _known(table.values[f"chosen_{unit}"] - table.values[f"rejected_{unit}"])
    count, equal = len(difference), int((difference == 0).sum())
    return [
        _rate(int((difference > 0).sum()), count), f"{equal / count:.1%}", _mean(difference),
    ]  # fmt: skip


def _rate(number: int, count: int) -> str:
    if not count:
        return "-"
    low, high = wilson_interval(number, count)
    return f"{number / count:.1%} (95 % interval {low:.1%} to {high:.1%})"


def _mean(values: np.ndarray) -> str:
    if len(values) < 2:
        return _signed(values.mean())
    low, high = mean_interval(values.tolist())
    return f"{_signed(values.mean())} (95 % interval {_signed(low)} to {_signed(high)})"


def _signed(value: float) -> str:
    return f"{round(value, 2) + 0.0:+.2f}"  # + 0.0: not "-0.00"


def measures_table(table: PairTable) -> Table:
    """The distribution of each measure."""
    percentiles = (0, 5, 50, 95, 100)
    rows = []
    for name, column in table.values.items():
        known = _known(column)
        if not len(known):
            continue
        shown: Callable[[float], str] = "{:.1%}".format if name in _SHARES else "{:,.4g}".format
        cells = [shown(value) for value in (known.mean(), *np.percentile(known, percentiles))]
        rows.append([name, f"{len(known):,}", *cells, MEASURES[name].text])
    return Table(["measure", "pairs", "mean", "lowest", "5 %", "median", "95 %", "highest", "what it is"], rows)


def flags_table(table: PairTable) -> Table:
    """How many pairs have each flag."""
    rows = [
        [name, f"{count:,}", f"{count / len(table):.2%}", FLAGS[name].text]
        for name, count in flag_counts(table).items()
    ]
    return Table(["flag", "pairs", "share", "what it says"], rows)


def flag_counts(table: PairTable) -> dict[str, int]:
    """Flag -> number of pairs."""
    return {name: int(column.sum()) for name, column in table.flags.items()}


def files_table(table: PairTable) -> Table:
    invalid = Counter(place.rpartition(":")[0] for place, _ in table.invalid)
    pairs = np.bincount(table.file, minlength=len(table.files))
    rows = [
        [str(path), f"{number:,}", f"{invalid[str(path)]:,}"] for path, number in zip(table.files, pairs, strict=True)
    ]
    return Table(["file", "pairs", "lines that are not pairs"], rows)


def scripts_table(table: PairTable) -> Table:
    """The commonest scripts of prompt, chosen and rejected response."""
    kinds, counts = np.unique(table.scripts, axis=0, return_counts=True)
    order = np.argsort(-counts, kind="stable")[:_MOST_SCRIPTS]
    rows = [[*(SCRIPTS[place] for place in kinds[one]), f"{counts[one]:,}"] for one in order]
    return Table(["prompt", "chosen", "rejected", "pairs"], rows)


def on_terminal(table: PairTable) -> str:
    """The short form: sentences, closeness, the flags that occur, and the options that more flags need."""
    lines = sentences(table)
    distance = _known(table.values["edit_distance"])
    if len(distance):
        low, middle = np.percentile(distance, (5, 50))
        lines.append(f"Edit distance of the responses: median {middle:.1%}; the closest 5 % are below {low:.1%}.")
    counts = flag_counts(table)
    for name, count in counts.items():
        if count:
            lines.append(f"  {name:{_NAME_WIDTH}}{count:>10,}{count / len(table):>8.2%}  {FLAGS[name].text}")
    if none := [name for name, count in counts.items() if not count]:
        lines.append(f"No pair has: {', '.join(none)}.")
    for option in (TEST, TOKENIZER, MODEL):
        if missing := [name for name, kind in FLAGS.items() if kind.needs == option and name not in counts]:
            lines.append(f"Needs {option}: {', '.join(missing)}.")
    return "\n".join(lines)


def notes(table: PairTable) -> list[str]:
    """What the numbers mean, as far as names and tables do not say it."""
    lines = [
        "Edit distance: the fewest insertions, deletions and replacements of characters, divided by the length of the "
        "longer response. 0 = equal, 1 = nothing in common.",
        "Intervals are 95 %: Wilson's for rates, Student's t for means.",
        "Near-duplicates share at least 0.8 of their pieces of eight bytes (Jaccard), estimated from 64 MinHash values "
        "with a standard error of 0.05. White space and capitals do not count, nor does what at least 5 % of the "
        "prompts share. Only the later one of two pairs has the flag.",
        "Scripts are those of letters, by their Unicode names. Two texts have a script in common if it makes up at "
        "least a tenth of the letters of both.",
        "Refusals are recognised by English phrases in the first 300 characters. A response counts as cut if it has at "
        "least 40 characters and ends in a letter, a comma or the like, or inside a block of code.",
        "The shown pairs are the worst of their kind, or the first ones of a flag; they need not be faults.",
    ]
    if any(MEASURES[name].needs == TOKENIZER for name in table.values):
        lines.append("Tokens are those that training reads; a response's end counts as one.")
    if any(MEASURES[name].needs == MODEL for name in table.values):
        lines.append(
            "CHES (Razin et al. 2024): pairs with the highest values are the first to leave out if chosen rewards fall."
        )
    return lines


def _known(values: np.ndarray) -> np.ndarray:
    return values[~np.isnan(values)]
