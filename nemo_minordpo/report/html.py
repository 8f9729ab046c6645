"""Parts of a page: sections, lists and tables; and the files that make a page look like the report."""

from collections.abc import Sequence
from html import escape
from importlib import resources
from string import Template

from nemo_minordpo.report.table import Table

_ASSETS = resources.files("nemo_minordpo.report") / "assets"


def asset(name: str) -> str:
    """The text of a file in assets/."""
    return (_ASSETS / name).read_text(encoding="utf-8")


def whole_page(*, title: str, css: str, body: str) -> str:
    """A page; the title is HTML."""
    return Template(asset("frame.html")).substitute(title=title, css=css, body=body)


def section(heading: str, body: str, anchor: str) -> str:
    """A section with its heading; "" if the body is empty."""
    return f'<section id="{anchor}"><h2>{escape(heading)}</h2>{body}</section>' if body else ""


def bullets(lines: Sequence[str]) -> str:
    return f"<ul>{''.join(f'<li>{escape(line)}</li>' for line in lines)}</ul>" if lines else ""


def html_table(table: Table, *, kind: str = "") -> str:
    """A table that scrolls sideways in a narrow window.

    kind: "named" = the first column has long names; "words" = the cells are sentences; or another class for the page.
    """
    if not table.rows:
        return ""
    head = "".join(f"<th scope=col>{escape(one)}</th>" for one in table.heads)
    body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in table.rows)
    return f'<div class="wide {kind}"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
