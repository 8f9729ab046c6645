"""Write the pairs that stay, byte for byte, and a line for each that goes."""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from nemo_minordpo.errors import UserError
from nemo_minordpo.files import whole_file
from nemo_minordpo.inspect.lines import parts_of
from nemo_minordpo.inspect.table import PairTable
from nemo_minordpo.prepare.chunk import rejection_line
from nemo_minordpo.prepare.data_set import REJECTED_FILE


def check_names(files: Sequence[Path], *, reserved: Sequence[str]) -> None:
    """Raises UserError if two files, or one and a file of the report, would have the same name in the output."""
    counts = Counter([file.name for file in files] + list(reserved))
    twice = [name for name, count in counts.items() if count > 1]
    if twice:
        raise UserError(
            f"two files would be named {twice[0]} in the output folder: filter them one by one, or rename one"
        )


def write_filtered(table: PairTable, reasons: Sequence[str | None], folder: Path) -> None:
    """Write each file's pairs that stay to a file of the same name, and the others to `rejected_rows.jsonl`.

    Args:
        table: of all pairs.
        reasons: why each pair goes; None = it stays.
        folder: for the files.

    Raises:
        UserError: no pair stays.
    """
    if all(reasons):
        raise UserError("the rules leave no pair: nothing is written")
    of_place = {table.place(pair): reason for pair, reason in enumerate(reasons)}
    of_place |= {place: f"not a pair: {reason}" for place, reason in table.invalid}
    with whole_file(folder / REJECTED_FILE, "wb") as rejected:
        for file in table.files:
            with whole_file(folder / file.name, "wb") as out:
                for place, line in _lines(file):
                    if reason := of_place[place]:
                        rejected.write(rejection_line(place, reason))
                    else:
                        out.write(line)


def counts_of(reasons: Sequence[str | None]) -> dict[str, int]:
    """Rule -> number of pairs that it removed, the most frequent first."""
    return dict(Counter(reason.partition(":")[0] for reason in reasons if reason).most_common())


def _lines(file: Path) -> Iterator[tuple[str, bytes]]:
    for part in parts_of([file]):
        for number, _, line in part.lines():
            yield f"{file}:{number}", line
