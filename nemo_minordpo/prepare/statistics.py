"""How long the responses of a pair are, and how close to each other: numbers and histograms."""

import math
from pathlib import Path
from typing import Any

import numpy as np
from rapidfuzz.distance import Levenshtein, Prefix
from rich.table import Table

from nemo_minordpo.records import PreferencePair

# name -> description; the first two are shares of the longer response.
MEASURES = {
    "edit_distance": "edit distance",
    "shared_prefix": "shared beginning",
    "prompt_characters": "characters, prompt",
    "chosen_characters": "characters, chosen",
    "rejected_characters": "characters, rejected",
}
_FRACTIONS = ("edit_distance", "shared_prefix")
_PERCENTILES = (1, 5, 25, 50, 75, 95, 99)
_BINS = 50
# The time for the edit distance grows with the product of the lengths: 0.3 s at this limit, minutes for a megabyte.
LONGEST_COMPARED = 50_000


def measure(pair: PreferencePair) -> tuple[float, ...]:
    """The values of :data:`MEASURES`; the edit distance is NaN if a response exceeds LONGEST_COMPARED characters.

    Edit distance: the fewest character insertions, deletions and replacements (Levenshtein), divided by the length of
    the longer response: 0 = equal, 1 = nothing in common.
    """
    chosen, rejected = pair.chosen_response, pair.rejected_response
    compared = max(len(chosen), len(rejected)) <= LONGEST_COMPARED
    return (
        Levenshtein.normalized_distance(chosen, rejected) if compared else math.nan,
        Prefix.normalized_similarity(chosen, rejected),
        len(pair.prompt),
        len(chosen),
        len(rejected),
    )


def summarise(measures: np.ndarray) -> dict[str, dict[str, float | int]]:
    """Mean, percentiles and range of each measure over the pairs, as in `statistics.json`.

    Args:
        measures: [pairs, len(MEASURES)].
    """
    return {name: _summary(measures[:, column]) for column, name in enumerate(MEASURES)}


def _summary(values: np.ndarray) -> dict[str, float | int]:
    known = values[~np.isnan(values)].astype(np.float64)
    summary: dict[str, float | int] = {"pairs": len(known), "not_measured": len(values) - len(known)}
    if len(known):
        percentiles = np.percentile(known, _PERCENTILES)
        summary |= {"mean": float(known.mean()), "min": float(known.min())}
        summary |= {f"p{name}": float(value) for name, value in zip(_PERCENTILES, percentiles, strict=True)}
        summary["max"] = float(known.max())
    return {name: round(value, 6) for name, value in summary.items()}


def statistics_table(summary: dict[str, dict[str, Any]]) -> Table:
    """The summary as a table for the terminal."""
    table = Table(box=None, pad_edge=False)
    columns = ("mean", "p5", "p50", "p95", "max")
    table.add_column("per pair")
    for name in columns:
        table.add_column({"p50": "median"}.get(name, name), justify="right")
    for name, values in summary.items():
        shown = "{:.1%}" if name in _FRACTIONS else "{:,.0f}"
        table.add_row(
            MEASURES[name], *(shown.format(values[column]) if column in values else "-" for column in columns)
        )
    return table


def draw_histograms(measures: np.ndarray, path: Path) -> None:
    """One histogram per measure; the last bin includes everything above the 99th percentile."""
    # These imports take seconds, and workers do not need them.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.2 * len(MEASURES), 3.0))
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(MEASURES), squeeze=False)[0]
    figure.subplots_adjust(left=0.05, right=0.99, bottom=0.2, top=0.95)
    for column, (name, axes) in enumerate(zip(MEASURES, panels, strict=True)):
        values = measures[:, column]
        values = values[~np.isnan(values)]
        top = float(np.percentile(values, 99)) if len(values) else 1.0
        heights, edges = np.histogram(np.minimum(values, top), bins=_BINS, range=(0, max(top, 1e-9)))
        axes.stairs(heights, edges, fill=True, color="#0072B2")
        axes.set_xlabel(MEASURES[name])
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("pairs")
    figure.savefig(path, format="png", dpi=110)
