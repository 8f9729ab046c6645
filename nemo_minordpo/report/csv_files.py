"""Every number shown in the figures and on the page, as CSV; an empty cell = no such value."""

import math
from typing import Any

from nemo_minordpo.report.axes import Grid
from nemo_minordpo.report.candidates import Relation, candidate_metrics
from nemo_minordpo.report.comparisons import Comparison, comparisons_csv
from nemo_minordpo.report.curves import Curves
from nemo_minordpo.report.figures.coefficient import coefficient, margins
from nemo_minordpo.report.runs import REWARDS, Run
from nemo_minordpo.report.score_table import score_csv
from nemo_minordpo.report.table import csv_text


def csv_files(
    grid: Grid, curves: Curves, *, relations: list[Relation], comparisons: list[Comparison]
) -> dict[str, str]:
    """File name -> content."""
    return {
        "settings.csv": _settings(grid),
        "curves.csv": _curves(grid, curves),
        "curves_over_seeds.csv": _curves_over_seeds(grid, curves),
        "coefficient.csv": _coefficient(grid),
        "ends.csv": _ends(grid),
        "candidates.csv": _candidates(relations),
        "scores.csv": score_csv(grid),
        "comparisons.csv": comparisons_csv(comparisons),
    }


def metrics_of(grid: Grid) -> list[str]:
    """Every metric that any run of the report logged."""
    return list(dict.fromkeys(name for run in grid.runs for name in run.metrics))


def known_betas(grid: Grid) -> list[float]:
    return [beta for beta in grid.betas if beta is not None and beta > 0]


def _settings(grid: Grid) -> str:
    header = [
        "name", "loss", "beta", "learning_rate", "seeds", "scored_seeds", "strict_accuracy", "low", "high",
        "highest_degenerate_rate", "breaks", *REWARDS,
    ]  # fmt: skip
    rows: list[list[Any]] = []
    for one in grid.settings:
        rate, scores = one.score, one.scores
        rows.append(
            [
                one.name, one.loss, one.beta, one.learning_rate, len(one.runs), len(scores),
                *((rate.value, rate.low, rate.high) if rate else (None, None, None)),
                max((score.degenerate_rate for score in scores), default=None), "; ".join(one.breaks),
                *(_cell(one.final(metric)) for metric in REWARDS),
            ]
        )  # fmt: skip
    return csv_text(header, rows)


def _axes(run: Run) -> list[Any]:
    return [run.name, run.loss, run.beta, run.learning_rate, run.seed]


def _curves(grid: Grid, curves: Curves) -> str:
    metrics = metrics_of(grid)
    rows = []
    for run in grid.runs:
        columns = [curves.run(run, metric).mean for metric in metrics]
        for place in range(curves.steps.count):
            cells = [_cell(column[place]) for column in columns]
            if any(cell is not None for cell in cells):
                rows.append([*_axes(run), curves.steps.first(place), curves.steps.last(place), *cells])
    return csv_text(["run", "loss", "beta", "learning_rate", "seed", "first_step", "last_step", *metrics], rows)


def _curves_over_seeds(grid: Grid, curves: Curves) -> str:
    metrics = metrics_of(grid)
    header = ["setting", "first_step", "last_step"]
    header += [f"{metric} {what}" for metric in metrics for what in ("mean", "low", "high")]
    rows = []
    for setting in grid.settings:
        if len(setting.runs) < 2:
            continue
        found = [curves.setting(setting, metric) for metric in metrics]
        columns = [column for curve in found for column in (curve.mean, curve.low, curve.high)]
        for place in range(curves.steps.count):
            cells = [_cell(column[place]) for column in columns]
            if any(cell is not None for cell in cells):
                rows.append([setting.name, curves.steps.first(place), curves.steps.last(place), *cells])
    return csv_text(header, rows)


def _coefficient(grid: Grid) -> str:
    betas = known_betas(grid)
    places = margins(betas) if betas else []
    rows = [[at, *(coefficient(beta, at) for beta in betas)] for at in places]
    return csv_text(["margin", *(f"beta {beta:g}" for beta in betas)], rows)


def _ends(grid: Grid) -> str:
    metrics = candidate_metrics(grid)
    rows = [
        [*_axes(run), run.score.strict_accuracy if run.score else None, *(_cell(run.final(m)) for m in metrics)]
        for run in grid.runs
    ]
    return csv_text(["run", "loss", "beta", "learning_rate", "seed", "strict_accuracy", *metrics], rows)


def _candidates(found: list[Relation]) -> str:
    header = ["metric", "runs", "n", "rank_correlation", "low", "high"]
    return csv_text(header, ([one.metric, one.runs, one.count, one.correlation, one.low, one.high] for one in found))


def _cell(value: float) -> float | None:
    return value if math.isfinite(value) else None
