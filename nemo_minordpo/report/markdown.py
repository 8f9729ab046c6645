"""The report as Markdown."""

from nemo_minordpo.report.document import Document
from nemo_minordpo.report.table import COLUMNS, headings, markdown_table


def as_markdown(document: Document, *, figures: list[str]) -> str:
    """The whole report; sections that make sense only for a sweep are left out otherwise.

    Args:
        document: the report's content.
        figures: image files to show, relative to the report's folder.
    """
    lines = ["# Report", "", *_paragraphs(document.sentences)]
    lines += markdown_table(headings(), ([cell(row) for cell in COLUMNS.values()] for row in document.rows))
    lines += ["", *_paragraphs(document.explanation)]
    lines += [f"![{name}]({name})\n" for name in figures]
    for heading, table in (("Scores", document.score_table), ("Paired tests", document.comparisons_table)):
        if table.rows:
            lines += [f"## {heading}", "", *markdown_table(*table), ""]
    if document.displacements:
        lines += ["## Which pairs lose their chosen response", "", *_paragraphs([document.displacement_sentence])]
        lines += [*markdown_table(*document.displacement_table), ""]
    if document.grid.is_sweep:
        lines += _sections_of_a_sweep(document)
    if document.notes:
        lines += ["## Notes", "", *(f"- {note}" for note in document.notes), ""]
    lines += [
        "[report.html](report.html) shows the same with interactive curves; numbers/ has all numbers as CSV.",
        "",
    ]
    return "\n".join(lines)


def _sections_of_a_sweep(document: Document) -> list[str]:
    lines = []
    if document.best_table.rows:
        lines += ["## Best at each setting", "", *markdown_table(*document.best_table), ""]
    lines += ["## The paper's claims", "", *markdown_table(*document.claims_table), ""]
    lines += ["## Metrics against score", "", document.candidates_sentence, ""]
    if document.relations_table.rows:
        lines += [*markdown_table(*document.relations_table), ""]
    return [*lines, "## Health", "", *markdown_table(*document.health_table), ""]


def _paragraphs(lines: list[str]) -> list[str]:
    return [line for paragraph in lines for line in (paragraph, "")]
