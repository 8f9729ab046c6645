"""The tables of a `minordpo sweep` report as JSON, for the pages of docs/.

    minordpo sweep demo
    python -m tests.benchmarks.sweep_results runs/demo/report/report.md docs/results/demo.json

Cells are copied unchanged, so that pages and reports agree.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from tests.benchmarks.tables import fill_pages


def tables_of(page: str) -> dict[str, Any]:
    """Every table of a report by its heading; there is one table per heading."""
    found: dict[str, Any] = {}
    heading, rows = "", []
    for line in [*page.splitlines(), ""]:
        if line.startswith("#"):
            # the heading may include the command that wrote the report
            heading = line.lstrip("#").split(" of `")[0].strip()
        elif line.startswith("|"):
            rows.append([cell.strip() for cell in line.strip("|").split("|")])
        elif rows:
            columns, _, *cells = rows
            found[heading] = {"columns": columns, "rows": cells}
            rows = []
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("report", type=Path, help="report.md")
    parser.add_argument("output", type=Path, help="file in docs/results")
    given = parser.parse_args()
    tables = tables_of(given.report.read_text(encoding="utf-8"))
    given.output.write_text(json.dumps({"tables": tables}, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    fill_pages()


if __name__ == "__main__":
    main()
