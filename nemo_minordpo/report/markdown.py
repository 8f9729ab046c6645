"""The report as Markdown."""

from nemo_minordpo.report.document import (
    BEST_HEADS,
    CLAIM_HEADS,
    HEALTH_HEADS,
    Contents,
    best_cells,
    claim_cells,
    health_cells,
    relation_cells,
    relation_heads,
)
from nemo_minordpo.report.table import COLUMNS, headings, markdown_table


def as_markdown(contents: Contents, *, figures: list[str]) -> str:
    """The whole report; what says nothing about a few runs is left to the page.

    Args:
        contents: what it says.
        figures: files to be shown, relative to the report's folder.
    """
    lines = ["# Report", "", *_paragraphs(contents.sentences)]
    lines += markdown_table(headings(), ([cell(row) for cell in COLUMNS.values()] for row in contents.rows))
    lines += ["", *_paragraphs(contents.explanation)]
    lines += [f"![{name}]({name})\n" for name in figures]
    if contents.grid.is_sweep:
        lines += _sections_of_a_sweep(contents)
    if contents.notes:
        lines += ["## Notes", "", *(f"- {note}" for note in contents.notes), ""]
    lines += [
        "[report.html](report.html) shows the same with curves to explore; numbers/ holds all numbers as CSV.",
        "",
    ]
    return "\n".join(lines)


def _sections_of_a_sweep(contents: Contents) -> list[str]:
    lines = []
    if best := best_cells(contents.grid):
        lines += ["## Best at each setting", "", *markdown_table(BEST_HEADS, best), ""]
    lines += ["## The paper's claims", "", *markdown_table(CLAIM_HEADS, claim_cells(contents.claims)), ""]
    lines += ["## Metrics against score", "", contents.candidates_sentence, ""]
    if any(one.correlation is not None for one in contents.relations):
        lines += [*markdown_table(relation_heads(contents.grid), relation_cells(contents.relations)), ""]
    health = [health_cells(row, row.health) for row in contents.rows if row.health is not None]
    return [*lines, "## Health", "", *markdown_table(HEALTH_HEADS, health), ""]


def _paragraphs(lines: list[str]) -> list[str]:
    return [line for paragraph in lines for line in (paragraph, "")]
