"""The comparison in numbers (Markdown, CSV, terminal) and in plain sentences made from them."""

import csv
import io
import math
from collections.abc import Callable
from dataclasses import dataclass

from rich.markup import escape
from rich.table import Table

from nemo_minordpo.records import Score
from nemo_minordpo.report.runs import Run

BASE = "base"


@dataclass(frozen=True, kw_only=True)
class Row:
    """A model of the comparison; None = it has no such value, NaN = training came to a value that is no number."""

    model: str
    score: Score | None
    beta: float | None = None
    learning_rate: float | None = None
    chosen: float | None = None  # nats, mean over the end of training
    rejected: float | None = None
    margin: float | None = None
    steps: int | None = None
    seconds: float | None = None


def rows_of(runs: list[Run], base: Score | None) -> list[Row]:
    """One row a model: the base first when it has a score, then the runs in their order."""
    return ([Row(model=BASE, score=base)] if base else []) + [_row(run) for run in runs]


def _row(run: Run) -> Row:
    seconds = None if math.isnan(run.seconds) else run.seconds
    if not run.steps:
        return Row(model=run.name, score=run.score, beta=run.beta, learning_rate=run.learning_rate)
    return Row(
        model=run.name,
        score=run.score,
        beta=run.beta,
        learning_rate=run.learning_rate,
        chosen=run.final("rewards/chosen"),
        rejected=run.final("rewards/rejected"),
        margin=run.final("rewards/margin"),
        steps=run.steps[-1].step,
        seconds=seconds,
    )


def reading(rows: list[Row]) -> list[str]:
    """What the table says, in at most two sentences; each is computed from the rows alone."""
    return [sentence for sentence in (_reading_of_rewards(rows), _reading_of_accuracy(rows)) if sentence]


def _reading_of_rewards(rows: list[Row]) -> str:
    sides: dict[str, list[str]] = {"below zero": [], "above zero": [], "at zero": [], "as no number": []}
    for row in rows:
        if row.chosen is not None:
            sides[_side(row.chosen)].append(f"{row.model} ({row.chosen:+.3g})")
    parts = [f"{side} under {_listed(models)}" for side, models in sides.items() if models]
    return f"rewards/chosen ends {_listed(parts)}." if parts else ""


def _reading_of_accuracy(rows: list[Row]) -> str:
    base = next((row.score for row in rows if row.model == BASE and row.score), None)
    compared = [(row.model, row.score) for row in rows if row.model != BASE and row.score]
    if base is None or not compared:
        return ""
    low, high = base.strict_interval_95
    parts = []
    for model, score in compared:
        other_low, other_high = score.strict_interval_95
        if other_high < low:
            change = "lower"
        elif other_low > high:
            change = "higher"
        else:
            change = "no clear difference: the intervals overlap"
        parts.append(f"{model} {_percent(score.strict_accuracy)} ({change})")
    return f"Strict accuracy, against {_percent(base.strict_accuracy)} of the base model: {'; '.join(parts)}."


def _side(value: float) -> str:
    if not math.isfinite(value):
        return "as no number"
    return "at zero" if value == 0 else "above zero" if value > 0 else "below zero"


def _listed(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.1f} %"


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


# Heading -> cell: the one list of what the table shows, in Markdown and, where 80 columns must do, on the terminal.
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


def as_rich(rows: list[Row]) -> Table:
    """The table for a terminal."""
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold")
    for number, heading in enumerate(COLUMNS):
        table.add_column(heading, justify="right" if number else "left")
    for row in rows:
        table.add_row(*(escape(cell(row)) for cell in COLUMNS.values()))
    return table


def as_markdown(rows: list[Row], *, sentences: list[str], notes: list[str]) -> str:
    """The whole report as Markdown; the figure lies beside it as `rewards.png`."""
    lines = ["# Report", "", *(line for sentence in sentences for line in (sentence, ""))]
    headings = [name.replace("-\n", "").replace("/\n", "/").strip().replace("\n", " ") for name in COLUMNS]
    lines += ["| " + " | ".join(headings) + " |", "|---|" + "---:|" * (len(COLUMNS) - 1)]
    lines += ["| " + " | ".join(cell(row) for cell in COLUMNS.values()) + " |" for row in rows]
    lines += [
        "",
        "Rewards are log-ratios of policy to reference in nats, without beta; mean over the last tenth of the steps.",
        "",
        "![Reward curves](rewards.png)",
    ]
    if notes:
        lines += ["", "## Notes", "", *(f"- {note}" for note in notes)]
    return "\n".join(lines) + "\n"


def as_csv(rows: list[Row]) -> str:
    """The same rows with unrounded numbers; an empty cell = no such value."""
    names = (
        "strict_accuracy", "strict_interval_95", "flexible_accuracy", "flexible_interval_95", "degenerate_rate",
        "no_answer_rate", "unfinished_rate", "num_questions",
    )  # fmt: skip
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    header = ["model", "beta", "learning_rate"]
    for name in names:
        header += [f"{name}_low", f"{name}_high"] if "interval" in name else [name]
    writer.writerow([*header, "rewards/chosen", "rewards/rejected", "rewards/margin", "steps", "seconds"])
    for row in rows:
        cells = [row.model, row.beta, row.learning_rate]
        for name in names:
            value = getattr(row.score, name, None)
            if "interval" in name:
                cells += value or (None, None)
            else:
                cells.append(value)
        writer.writerow([*cells, row.chosen, row.rejected, row.margin, row.steps, row.seconds])
    return out.getvalue()
