"""The tables of a report of `minordpo sweep` as JSON, for the pages of docs/.

    minordpo sweep demo
    python -m tests.benchmarks.sweep_results runs/demo/report/report.md docs/results/demo.json

Cells stay as the report shows them: the page says what the report says.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from tests.benchmarks.tables import fill_pages


def tables_of(page: str) -> dict[str, Any]:
    """Every table of a report by the heading that it stands under; a report has one table under each."""
    found: dict[str, Any] = {}
    heading, rows = "", []
    for line in [*page.splitlines(), ""]:
        if line.startswith("#"):
            # the command that made the report may stand behind its name
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
