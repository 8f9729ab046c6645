"""`pairs.csv`: one line per pair, with every measure and flag."""

import csv
import math
from pathlib import Path

from nemo_minordpo.files import whole_file
from nemo_minordpo.inspect.scripts import SCRIPTS
from nemo_minordpo.inspect.table import PairTable


def write_spreadsheet(table: PairTable, path: Path) -> None:
    """Write the table: file:line, measures (empty = not known), flags (1 or 0), scripts, and what flags are about."""
    about = [name for name in table.flags if name in table.earlier]
    with whole_file(path) as out:
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(
            ["pair", *table.values, *table.flags, "prompt_script", "chosen_script", "rejected_script"]
            + [f"{name}_of" for name in about]
            + ["test_question"] * (table.tests is not None)
        )
        for pair in range(len(table)):
            values = (column[pair].item() for column in table.values.values())
            writer.writerow(
                [table.place(pair)]
                + ["" if math.isnan(value) else int(value) if value.is_integer() else value for value in values]
                + [int(column[pair]) for column in table.flags.values()]
                + [SCRIPTS[place] for place in table.scripts[pair]]
                + [table.like(name, pair) for name in about]
                + [table.like("in_test", pair)] * (table.tests is not None)
            )
