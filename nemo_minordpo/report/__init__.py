"""From run folders and scores to one table and one figure; reads files alone, no torch and no NeMo.

`runs.py` reads, `table.py` says it in words and numbers, `rewards.py` draws.
"""

from pathlib import Path

from rich.console import Console

from nemo_minordpo.records import refuse_existing, write_text
from nemo_minordpo.report.rewards import draw_rewards
from nemo_minordpo.report.runs import Run, read_run, read_score
from nemo_minordpo.report.table import as_csv, as_markdown, as_rich, reading, rows_of

__all__ = ["report"]


def report(runs: list[Path], *, base: Path | None, output: Path, overwrite: bool = False) -> None:
    """Write `report.md`, `report.csv` and `rewards.png`, and print the table and what it says.

    Args:
        runs: run folders, in the order of the table; a run's score is `<run>/evaluation/score.json`.
        base: folder with the `score.json` of the model that training started from; None = no such row.
        output: folder of the three files.
        overwrite: replace the three files of an earlier report.

    Raises:
        ValueError: a folder is no run folder, `base` has no score, or `output` is not empty. What a run lacks
            (steps, a score, values that are numbers) is no error: the report says it in a note.
    """
    refuse_existing(output, overwrite=overwrite)
    read = _distinctly_named([read_run(folder) for folder in runs])
    base_score = None if base is None else read_score(base)
    if base is not None and base_score is None:
        raise ValueError(f"{base / 'score.json'}: no such file; `minordpo evaluate` writes it")
    rows = rows_of(read, base_score)
    sentences = reading(rows)
    notes = [f"{run.name}: {note}" for run in read for note in run.notes]
    draw_rewards(read, output / "rewards.png")
    write_text(output / "report.csv", as_csv(rows))
    write_text(output / "report.md", as_markdown(rows, sentences=sentences, notes=notes))
    console = Console()
    console.print(as_rich(rows))
    for line in sentences:
        console.print(line, highlight=False, markup=False)
    for line in notes:
        console.print(f"note: {line}", highlight=False, style="yellow", markup=False)
    console.print(f"Written to {output}: report.md, report.csv, rewards.png", highlight=False, markup=False)


def _distinctly_named(runs: list[Run]) -> list[Run]:
    """Runs are called after their loss; where that is not enough, after loss and folder."""
    losses = [run.loss for run in runs]
    for run in runs:
        run.name = run.loss if losses.count(run.loss) == 1 else f"{run.loss} ({run.folder})"
    return runs
