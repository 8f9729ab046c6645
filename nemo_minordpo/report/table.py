"""The comparison in numbers: one row per model, as Markdown, on the terminal and as CSV."""

import csv
import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

from rich.markup import escape
from rich.table import Table as RichTable

from nemo_minordpo.records import Score
from nemo_minordpo.report.axes import Grid
from nemo_minordpo.report.health import Health, health_of
from nemo_minordpo.report.runs import Run

BASE = "base"


class Table(NamedTuple):
    """Column heads, and rows with one cell per column."""

    heads: list[str]
    rows: list[list[str]]


@dataclass(frozen=True, kw_only=True)
class Row:
    """A model of the comparison; None = no such value, NaN = training produced a value that is not a number."""

    model: str
    score: Score | None
    health: Health | None = None  # None = not trained here
    beta: float | None = None
    learning_rate: float | None = None
    seed: int | None = None
    chosen: float | None = None  # nats, mean over the last steps
    rejected: float | None = None
    margin: float | None = None

    @property
    def steps(self) -> int | None:
        return None if self.health is None else self.health.steps or None

    @property
    def seconds(self) -> float | None:
        return None if self.health is None else self.health.seconds


def rows_of(grid: Grid) -> list[Row]:
    """One row per model: first the base, if it has a score, then the runs, setting by setting."""
    return ([Row(model=BASE, score=grid.base)] if grid.base else []) + [_row(run) for run in grid.runs]


def _row(run: Run) -> Row:
    ends = {"chosen": "rewards/chosen", "rejected": "rewards/rejected", "margin": "rewards/margin"}
    return Row(
        model=run.name,
        score=run.score,
        health=health_of(run),
        beta=run.beta,
        learning_rate=run.learning_rate,
        seed=run.seed,
        **({name: run.final(metric) for name, metric in ends.items()} if run.steps and run.has_reference else {}),
    )


def _strict(row: Row) -> str:
    if row.score is None:
        return "-"
    low, high = row.score.strict_interval_95
    return f"{100 * row.score.strict_accuracy:.1f} ({100 * low:.1f}-{100 * high:.1f})"


def _of_score(name: str) -> Callable[[Row], str]:
    return lambda row: "-" if row.score is None else f"{100 * getattr(row.score, name):.1f}"


def _signed(name: str) -> Callable[[Row], str]:
    return lambda row: "-" if getattr(row, name) is None else f"{getattr(row, name):+.2f}"


def _time(row: Row) -> str:
    return "-" if row.seconds is None else f"{int(row.seconds) // 60}:{int(row.seconds) % 60:02d}"


# Heading -> cell: the single definition of the table's columns; line breaks make it fit a terminal of 80 columns.
COLUMNS: dict[str, Callable[[Row], str]] = {
    "model": lambda row: row.model,
    "strict, %\n(95 % interval)": _strict,
    "flexible\n%": _of_score("flexible_accuracy"),
    "degener-\nate, %": _of_score("degenerate_rate"),
    "rewards/\nchosen": _signed("chosen"),
    "rewards/\nrejected": _signed("rejected"),
    "\nmargin": _signed("margin"),
    "\nsteps": lambda row: "-" if row.steps is None else str(row.steps),
    "time\nmin:s": _time,
}


def headings() -> list[str]:
    """The headings of COLUMNS, each on one line."""
    return [name.replace("-\n", "").replace("/\n", "/").strip().replace("\n", " ") for name in COLUMNS]


def as_rich(rows: list[Row]) -> RichTable:
    """The table for a terminal."""
    table = RichTable(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold")
    for number, heading in enumerate(COLUMNS):
        table.add_column(heading, justify="right" if number else "left")
    for row in rows:
        table.add_row(*(escape(cell(row)) for cell in COLUMNS.values()))
    return table


def markdown_table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table: the first column left-aligned, the others right-aligned."""
    lines = ["| " + " | ".join(heads) + " |", "|---|" + "---:|" * (len(heads) - 1)]
    return lines + ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]


def csv_text(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """CSV with unrounded numbers; an empty cell = no such value."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return out.getvalue()


def as_csv(rows: list[Row]) -> str:
    """The same rows, plus each run's health."""
    names = (
        "strict_accuracy", "strict_interval_95", "flexible_accuracy", "flexible_interval_95", "degenerate_rate",
        "no_answer_rate", "unfinished_rate", "num_questions",
    )  # fmt: skip
    of_health = [item.name for item in fields(Health) if item.name not in ("steps", "seconds")]
    header = ["model", "beta", "learning_rate"]
    for name in names:
        header += [f"{name}_low", f"{name}_high"] if "interval" in name else [name]
    header += ["rewards/chosen", "rewards/rejected", "rewards/margin", "steps", "seconds", "seed", *of_health]
    lines = []
    for row in rows:
        cells: list[Any] = [row.model, row.beta, row.learning_rate]
        for name in names:
            value = getattr(row.score, name, None)
            if "interval" in name:
                cells += value or (None, None)
            else:
                cells.append(value)
        cells += [row.chosen, row.rejected, row.margin, row.steps, row.seconds, row.seed]
        lines.append(cells + [getattr(row.health, name, None) for name in of_health])
    return csv_text(header, lines)
