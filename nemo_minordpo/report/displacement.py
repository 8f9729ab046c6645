"""Which pairs lose their chosen response: measures of a pair before training against what training did to it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nemo_minordpo.core.intervals import mean_interval, rank_correlation_interval
from nemo_minordpo.report.candidates import spearman
from nemo_minordpo.report.scored_pairs import MEASURES, MOVED, ScoredPairs
from nemo_minordpo.report.table import Table, csv_text

FEWEST_PAIRS = 20
_BINS = 10
_FIRST = next(iter(MEASURES))


@dataclass(frozen=True, kw_only=True)
class Displacement:
    """What training at one setting did to its chosen responses, averaged over the seeds that were scored.

    moved: mean log-ratio of the chosen responses, nats, with its interval over the pairs.
    fallen: share of the pairs whose chosen response is less likely than before.
    correlations: measure -> (rank correlation with the log-ratio, interval); None if one of them is constant.
    bins: mean log-ratio in each tenth of the pairs, from the lowest CHES per token to the highest.
    """

    name: str
    loss: str
    learning_rate: float | None
    beta: float | None
    num_pairs: int
    num_seeds: int
    moved: tuple[float, float, float]
    fallen: float
    correlations: dict[str, tuple[float, float, float] | None]
    bins: list[float]


def displacement(scored: Sequence[ScoredPairs], **of_setting: Any) -> Displacement | None:
    """The displacement over the pairs that all these runs scored; None with fewer than FEWEST_PAIRS.

    Args:
        scored: of each run of a setting.
        of_setting: name, loss, learning_rate and beta.
    """
    common = [pair for pair in scored[0] if all(pair in other for other in scored)] if scored else []
    if len(common) < FEWEST_PAIRS:
        return None
    columns = {
        name: np.array([np.mean([run[pair][name] for run in scored]) for pair in common]) for name in (MOVED, *MEASURES)
    }
    moved = columns[MOVED]
    correlations = {}
    for name in MEASURES:
        found = spearman(columns[name].tolist(), moved.tolist())
        correlations[name] = None if found is None else (found, *rank_correlation_interval(found, len(common)))
    order = np.argsort(columns[_FIRST], kind="stable")
    return Displacement(
        num_pairs=len(common), num_seeds=len(scored), fallen=float((moved < 0).mean()), correlations=correlations,
        moved=(float(moved.mean()), *mean_interval(moved.tolist())),
        bins=[float(moved[part].mean()) for part in np.array_split(order, _BINS)], **of_setting,
    )  # fmt: skip


def displacement_table(found: Sequence[Displacement]) -> Table:
    """One line per setting."""
    heads = ["model", "pairs", "chosen, nats (95 % interval)", "chosen fell, % of pairs"]
    heads += [f"rank correlation with {name} (95 % interval)" for name in MEASURES.values()]
    rows = [
        [
            one.name, str(one.num_pairs), "{:+.2f} ({:+.2f} to {:+.2f})".format(*one.moved), f"{100 * one.fallen:.1f}",
            *("-" if value is None else "{:+.2f} ({:+.2f} to {:+.2f})".format(*value)
              for value in one.correlations.values()),
        ]
        for one in found
    ]  # fmt: skip
    return Table(heads, rows)


def displacement_csv(found: Sequence[Displacement]) -> str:
    """The same, unrounded, with the means of the tenths."""
    header = ["name", "pairs", "seeds", "chosen", "chosen_low", "chosen_high", "fallen"]
    header += [f"{name}{end}" for name in MEASURES for end in (" rank correlation", " low", " high")]
    header += [f"tenth_{number}" for number in range(1, _BINS + 1)]
    rows = []
    for one in found:
        correlations = [value for three in one.correlations.values() for value in three or (None, None, None)]
        rows.append([one.name, one.num_pairs, one.num_seeds, *one.moved, one.fallen, *correlations, *one.bins])
    return csv_text(header, rows)


def displacement_sentence(found: Sequence[Displacement]) -> str:
    """What the measure says of the settings; empty without scored pairs."""
    known = [(one.name, one.correlations[_FIRST]) for one in found]
    known = [(name, value) for name, value in known if value is not None]
    if not known:
        return ""
    below = [name for name, (_, _, high) in known if high < 0]
    above = [name for name, (_, low, _) in known if low > 0]
    return (
        f"Pairs with a higher CHES per token before training lose more of their chosen response at {len(below)} of "
        f"{len(known)} settings, less at {len(above)} (rank correlations whose 95 % interval excludes 0)."
    )
