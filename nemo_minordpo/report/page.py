"""One self-contained HTML page with text, tables and interactive curves; needs no network and no other file."""

import json
import math
from collections.abc import Sequence
from html import escape
from string import Template
from typing import Any

from nemo_minordpo import __version__
from nemo_minordpo.report.axes import Grid, Setting, number
from nemo_minordpo.report.candidates import candidate_metrics
from nemo_minordpo.report.csv_files import known_betas, metrics_of
from nemo_minordpo.report.curves import Curve, Curves
from nemo_minordpo.report.document import Document
from nemo_minordpo.report.figures.canvas import REWARD_COLORS, beta_colors, loss_colors
from nemo_minordpo.report.figures.coefficient import coefficient, margins
from nemo_minordpo.report.figures.score import place_of, seeds_place
from nemo_minordpo.report.html import asset, bullets, html_table, section, whole_page
from nemo_minordpo.report.page_problems import problems_section
from nemo_minordpo.report.runs import REWARDS, Run
from nemo_minordpo.report.scores import Rate
from nemo_minordpo.report.table import COLUMNS, Table, headings

# A longer table of comparisons is folded.
_MOST_ROWS = 12


def as_html(document: Document) -> str:
    """The page. Its curves show the numbers of numbers/*.csv."""
    grid = document.grid
    parts = {
        "title": escape(_title(grid)),
        "summary": escape(_summary(grid)),
        "reading": bullets(document.sentences) or "<p>No run has a step or a score yet.</p>",
        "score_table": section("Scores", html_table(document.score_table, kind="named"), anchor="score-table"),
        "comparisons": section("Paired tests", _folded(document.comparisons_table), anchor="paired"),
        "problems": section("Problems on which models differ", problems_section(document.differing), anchor="problems"),
        "claims": _claims(document),
        "best": section("Best at each setting", html_table(document.best_table), anchor="best")
        if grid.is_sweep
        else "",
        "runs": _runs_table(document),
        "health": html_table(document.health_table, kind="named"),
        "displacement_sentence": escape(document.displacement_sentence),
        "displacement_table": html_table(document.displacement_table, kind="named"),
        "candidates": f"<p>{escape(document.candidates_sentence)}</p>",
        "relations": html_table(document.relations_table, kind="named"),
        "explanation": bullets(document.explanation),
        "notes": section("Notes", bullets(document.notes), anchor="notes"),
        "to_notes": f'; <a href="#notes">{len(document.notes)} notes</a>' if document.notes else "",
        "version": escape(__version__),
        "data": _json(_data(document)),
        "plot_js": asset("uPlot.iife.min.js"),
        "js": asset("page.js"),
    }
    css = f"{asset('uPlot.min.css')}\n{asset('page.css')}"
    return whole_page(title=parts["title"], css=css, body=Template(asset("page.html")).substitute(parts))


def _title(grid: Grid) -> str:
    return f"{', '.join(grid.losses)}: {len(grid.runs)} runs" if len(grid.runs) > 1 else grid.runs[0].name


def _summary(grid: Grid) -> str:
    seeds = {len(setting.runs) for setting in grid.settings}
    of_each = f"{min(seeds)}" if len(seeds) == 1 else f"{min(seeds)} to {max(seeds)}"
    scored = sum(run.score is not None for run in grid.runs)
    return (
        f"{len(grid.losses)} losses; beta {', '.join(map(number, grid.betas))}; learning rate "
        f"{', '.join(map(number, grid.learning_rates))}; runs per setting: {of_each}; scored: {scored} of "
        f"{len(grid.runs)}"
    )


def _folded(table: Table) -> str:
    """A table; folded if it is long."""
    whole = html_table(table, kind="named")
    if len(table.rows) <= _MOST_ROWS:
        return whole
    return f"<details><summary>{len(table.rows)} comparisons</summary>{whole}</details>"


def _claims(document: Document) -> str:
    if not document.claims:
        return ""
    table = html_table(document.claims_table, kind="words")
    for verdict in {claim.verdict for claim in document.claims}:
        tag = verdict.replace(" ", "-")
        table = table.replace(f"<td>{verdict}</td>", f'<td><span class="verdict {tag}">{verdict}</span></td>')
    return section("The paper's claims", table, anchor="claims")


def _runs_table(document: Document) -> str:
    """The comparison table; each run has a checkbox that shows or hides its curves."""
    head = "".join(f"<th scope=col>{escape(one)}</th>" for one in headings())
    lines, place = [], 0
    for row in document.rows:
        cells = [f"<td>{escape(cell(row))}</td>" for cell in COLUMNS.values()]
        if row.health is not None:
            box = f'<label><input type=checkbox checked data-run="{place}"> {escape(row.model)}</label>'
            cells[0] = f"<td>{box}</td>"
            place += 1
        lines.append(f"<tr>{''.join(cells)}</tr>")
    return f'<div class="wide named"><table><thead><tr>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>'


def _json(value: Any) -> str:
    """JSON that cannot close the enclosing script element; NaN as null."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")


def _data(document: Document) -> dict[str, Any]:
    grid, curves = document.grid, document.curves
    metrics, candidates, runs = metrics_of(grid), candidate_metrics(grid), grid.runs
    places = {id(run): place for place, run in enumerate(runs)}
    of_losses, of_betas = loss_colors(grid.losses), beta_colors(grid.betas)
    betas = known_betas(grid)
    at = margins(betas) if betas else []
    return {
        "sweep": grid.is_sweep,
        "metrics": metrics,
        "candidates": candidates,
        "rewards": [{"name": name, "color": REWARD_COLORS[name]} for name in REWARDS],
        "losses": [{"name": loss, "color": of_losses[loss]} for loss in grid.losses],
        "betas": [{"name": number(beta), "color": of_betas[beta]} for beta in grid.betas],
        "rates": [number(rate) for rate in grid.learning_rates],
        "steps": {"x": curves.steps.centres, "width": curves.steps.width},
        "settings": [_setting(grid, one, metrics, curves, places) for one in grid.settings],
        "runs": [_run(run, metrics, candidates, curves) for run in runs],
        "base": _rate(grid.base_rate),
        "coefficient": {"x": at, "curves": [[coefficient(beta, x) for x in at] for beta in betas]},
        "displacements": [
            {
                "loss": grid.losses.index(one.loss),
                "rate": grid.learning_rates.index(one.learning_rate),
                "beta": grid.betas.index(one.beta),
                "bins": one.bins,
            }
            for one in document.displacements
        ],
        "coefficientBetas": [grid.betas.index(beta) for beta in betas],
    }


def _setting(
    grid: Grid, setting: Setting, metrics: list[str], curves: Curves, places: dict[int, int]
) -> dict[str, Any]:
    several = len(setting.runs) > 1
    return {
        "name": setting.name,
        "loss": grid.losses.index(setting.loss),
        "beta": grid.betas.index(setting.beta),
        "rate": grid.learning_rates.index(setting.learning_rate),
        "runs": [places[id(run)] for run in setting.runs],
        "place": place_of(grid, setting),
        "seedsPlace": seeds_place(grid, setting),
        "score": _rate(setting.score),
        "breaks": setting.breaks,
        "degenerate": setting.is_degenerate,
        # with a single run, the curve is the run's own
        "curves": {metric: _curve(curves.setting(setting, metric)) for metric in metrics} if several else None,
    }


def _run(run: Run, metrics: list[str], candidates: list[str], curves: Curves) -> dict[str, Any]:
    return {
        "name": run.name,
        "curves": {metric: _nulls(curves.run(run, metric).mean) for metric in metrics},
        "ends": {metric: _null(run.final(metric)) for metric in candidates},
        "score": run.score.strict_accuracy if run.score else None,
    }


def _rate(rate: Rate | None) -> list[float] | None:
    return [rate.value, rate.low, rate.high] if rate else None


def _curve(curve: Curve) -> list[list[float | None]]:
    return [_nulls(curve.mean), _nulls(curve.low), _nulls(curve.high)]


def _nulls(values: Sequence[float]) -> list[float | None]:
    return [_null(value) for value in values]


def _null(value: float) -> float | None:
    return value if math.isfinite(value) else None
