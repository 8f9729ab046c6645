"""The report as one self-contained HTML page without scripts, in the style of `minordpo report`."""

from html import escape
from importlib import resources
from string import Template

import numpy as np

from nemo_minordpo import __version__
from nemo_minordpo.inspect.examples import examples_section
from nemo_minordpo.inspect.histogram import histogram
from nemo_minordpo.inspect.kinds import MEASURES
from nemo_minordpo.inspect.marked import visible
from nemo_minordpo.inspect.summary import (
    files_table,
    flags_table,
    length_table,
    measures_table,
    notes,
    scripts_table,
    sentences,
)
from nemo_minordpo.inspect.table import PairTable
from nemo_minordpo.report.html import asset, bullets, html_table, section, whole_page
from nemo_minordpo.report.table import Table

_ASSETS = resources.files("nemo_minordpo.inspect") / "assets"
_DRAWN = ("edit_distance", "shared_prefix", "length_ratio", "chosen_characters", "logp_margin", "ches_per_token")
_MOST_INVALID = 50


def as_html(table: PairTable, *, removed: dict[str, int] | None) -> str:
    """The page.

    Args:
        table: of all pairs.
        removed: rule -> number of pairs that it removed; None = no rules were given.
    """
    finite = {name: table.values[name][np.isfinite(table.values[name])] for name in _DRAWN if name in table.values}
    drawn = [histogram(column, title=MEASURES[name].text) for name, column in finite.items() if len(column)]
    parts = {
        "title": escape(", ".join(path.name for path in table.files[:3]) + (", ..." if len(table.files) > 3 else "")),
        "findings": bullets(sentences(table)),
        "flags": section("Flags", html_table(flags_table(table), kind="flags"), "flags"),
        "filter": "" if removed is None else section("Pairs left out", _removed(table, removed), "left-out"),
        "examples": section("The worst pairs of each kind", examples_section(table), "examples"),
        "lengths": section("Lengths", html_table(length_table(table)), "lengths"),
        "histograms": "".join(drawn),
        "measures": html_table(measures_table(table), kind="flags"),
        "scripts": section("Scripts", html_table(scripts_table(table)), "scripts"),
        "files": section("Files", html_table(files_table(table), kind="named"), "files"),
        "invalid": section("Lines that are not pairs", _invalid(table), "invalid"),
        "notes": bullets(notes(table)),
        "version": escape(__version__),
    }
    body, css = ((_ASSETS / f"inspect.{kind}").read_text(encoding="utf-8") for kind in ("html", "css"))
    return whole_page(title=parts["title"], css=f"{asset('page.css')}\n{css}", body=Template(body).substitute(parts))


def _removed(table: PairTable, removed: dict[str, int]) -> str:
    left = len(table) - sum(removed.values())
    rows = [[rule, f"{count:,}"] for rule, count in removed.items()]
    said = f"<p>{left:,} of {len(table):,} pairs stay; every other one is in rejected_rows.jsonl with its rule.</p>"
    return said + html_table(Table(["rule", "pairs that it removed"], rows), kind="named")


def _invalid(table: PairTable) -> str:
    lines = [visible(f"{place}: {reason}") for place, reason in table.invalid[:_MOST_INVALID]]
    left = len(table.invalid) - len(lines)
    return bullets([*lines, *([f"and {left:,} more"] if left else [])])
