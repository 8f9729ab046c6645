"""Turn run folders and scores into tables, figures and one page. Reads only files; needs neither torch nor NeMo.

`runs.py`, `answers.py`, `scored_pairs.py` and `run_state.py` read, `axes.py` groups runs into settings, `scores.py`,
`score_table.py`, `summary.py`, `comparisons.py`, `differing.py`, `displacement.py`, `claims.py`, `candidates.py` and
`health.py` judge, `curves.py` thins, `document.py` collects the results, and `figures/`, `page.py`, `markdown.py` and
`csv_files.py` write them. `status.py` is `minordpo status`.
"""

import re
from pathlib import Path

from rich.console import Console

from nemo_minordpo.errors import UserError
from nemo_minordpo.file_names import REPORT, SCORE
from nemo_minordpo.files import refuse_existing, write_text
from nemo_minordpo.report.axes import arrange, number
from nemo_minordpo.report.csv_files import csv_files, known_betas
from nemo_minordpo.report.displacement import displacement_csv
from nemo_minordpo.report.document import Document, document_of
from nemo_minordpo.report.figures.coefficient import draw_coefficient
from nemo_minordpo.report.figures.displacement import draw_displacement
from nemo_minordpo.report.figures.rewards import draw_overview, draw_rewards
from nemo_minordpo.report.figures.score import draw_score
from nemo_minordpo.report.markdown import as_markdown
from nemo_minordpo.report.page import as_html
from nemo_minordpo.report.runs import Run, answers_or_note, read_run, read_score
from nemo_minordpo.report.table import BASE, as_csv, as_rich

__all__ = ["report"]

# More panels do not fit side by side.
_MOST_PANELS = 6
# A longer table is not printed on the terminal.
_MOST_ROWS = 20
_FIGURES, _NUMBERS = "figures", "numbers"


def report(runs: list[Path], *, base: Path | None, output: Path, overwrite: bool = False) -> None:
    """Write the report; print its findings and, unless it is long, the table.

    Writes `report.html` (the page), `report.md`, `report.csv` (one row per run), `rewards.png`, the other figures in
    figures/, and all numbers in numbers/.

    Args:
        runs: run folders; losses are shown in this order. A run's score is `<run>/evaluation/score.json`.
        base: folder with the `score.json` of the model that training started from; None = no such row.
        output: the report's folder.
        overwrite: replace an earlier report, including its figures/*.png and numbers/*.csv.

    Raises:
        ValueError: none of the folders is a run folder, `base` has no score, or `output` is not empty. A run without
            steps, a score or finite values is not an error, nor is one folder that is not a run folder yet: the
            report mentions these in a note.
    """
    refuse_existing(output, overwrite=overwrite)
    read, left_out = _read(runs)
    base_score = None if base is None else read_score(base)
    if base is not None and base_score is None:
        raise UserError(f"{base / SCORE}: no such file; `minordpo evaluate` writes it")
    notes: list[str] = []
    base_answers = None if base is None or base_score is None else answers_or_note(base, base_score, notes)
    grid = arrange(read, base_score, left_out, base_answers)
    document = document_of(grid, [f"{BASE}: {note}" for note in notes])
    written = [*_draw(document, output), *_write_csv_files(document, output)]
    write_text(output / "report.csv", as_csv(document.rows))
    figures = [str(path.relative_to(output)) for path in written if path.suffix == ".png"]
    write_text(output / "report.html", as_html(document))
    write_text(output / REPORT, as_markdown(document, figures=figures))
    _remove_others(output, written)
    _print(document, output)


def _read(folders: list[Path]) -> tuple[list[Run], list[str]]:
    """The readable runs, and why the other folders were skipped."""
    runs, left_out = [], []
    for folder in dict.fromkeys(folders):
        try:
            runs.append(read_run(folder))
        except UserError as error:
            left_out.append(f"left out: {error}")
    if not runs:
        raise UserError("; ".join(left_out).replace("left out: ", ""))
    return runs, left_out


def _draw(document: Document, output: Path) -> list[Path]:
    """Draw those of the paper's figures for which there is data."""
    grid, curves, figures = document.grid, document.curves, output / _FIGURES
    paths = [output / "rewards.png"]
    if len(grid.settings) <= _MOST_PANELS:
        # log-probabilities, the rewards of a loss without a reference, would flatten the others on a shared axis
        drawn = [one for one in grid.settings if one.has_reference] or grid.settings
        titles = [one.name if "beta" in one.name else f"{one.name}, beta {number(one.beta)}" for one in drawn]
        draw_rewards(drawn, titles, curves, paths[0])
    else:
        draw_overview(grid, curves, paths[0])
        for (loss, rate), settings in grid.rows().items():
            paths.append(figures / f"rewards-{_file_name(loss)}-lr-{number(rate)}.png")
            titles = [f"{loss}, lr {number(rate)}, beta {number(one.beta)}" for one in settings]
            draw_rewards(settings, titles, curves, paths[-1])
    if betas := known_betas(grid):
        paths.append(figures / "coefficient.png")
        draw_coefficient(betas, paths[-1])
    if any(setting.score for setting in grid.settings):
        paths.append(figures / "score.png")
        draw_score(grid, paths[-1])
    if document.displacements:
        paths.append(figures / "displacement.png")
        draw_displacement(document.displacements, grid.losses, paths[-1])
    return paths


def _write_csv_files(document: Document, output: Path) -> list[Path]:
    paths = []
    found = csv_files(document.grid, document.curves, relations=document.relations, comparisons=document.comparisons)
    if document.displacements:
        found["displacement.csv"] = displacement_csv(document.displacements)
    for name, text in found.items():
        paths.append(output / _NUMBERS / name)
        write_text(paths[-1], text)
    return paths


def _remove_others(output: Path, written: list[Path]) -> None:
    """Remove an earlier report's figures and numbers that this report lacks: they would be taken for its own."""
    for path in [*(output / _FIGURES).glob("*.png"), *(output / _NUMBERS).glob("*.csv")]:
        if path not in written:
            path.unlink()


def _print(document: Document, output: Path) -> None:
    console = Console()
    if len(document.rows) <= _MOST_ROWS:
        console.print(as_rich(document.rows))
    for line in document.sentences:
        console.print(line, highlight=False, markup=False)
    for claim in document.claims:
        console.print(f"{claim.verdict}: {claim.text}", highlight=False, markup=False)
    for line in document.notes:
        console.print(f"note: {line}", highlight=False, style="yellow", markup=False)
    console.print(
        f"Written to {output}: report.html, report.md, report.csv, rewards.png, {_FIGURES}/, {_NUMBERS}/",
        highlight=False,
        markup=False,
    )


def _file_name(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9.]+", "-", text).strip("-")
