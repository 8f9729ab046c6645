"""MetaMathQA on the disk, to be asked for the questions that have a given response."""

import hashlib
import os
import sqlite3
from collections.abc import Iterable, Iterator
from pathlib import Path

from rich.console import Console
from rich.progress import track

from nemo_minordpo.checked_json import checked_text
from nemo_minordpo.errors import UserError
from nemo_minordpo.prepare.sources import Source

INDEX_NAME = "metamathqa.sqlite"


def build_index(sources: Iterable[Source], path: Path) -> dict[str, int]:
    """Write responses with their questions into `path`; one that is there already is left. Returns counts.

    Raises:
        ValueError: not a row is usable, or a file cannot be read to its end.
    """
    if not path.exists():
        temporary = path.with_suffix(".tmp")
        temporary.unlink(missing_ok=True)
        rejected: list[int] = [0]
        with sqlite3.connect(temporary) as connection:
            connection.executescript("PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF;")
            connection.execute("CREATE TABLE response (digest INTEGER, query TEXT, original TEXT)")
            connection.executemany("INSERT INTO response VALUES (?, ?, ?)", _entries(sources, rejected))
            connection.execute("CREATE INDEX by_digest ON response (digest)")
            connection.execute("CREATE TABLE rejected AS SELECT ? AS number", rejected)
        connection.close()
        os.replace(temporary, path)
    connection = sqlite3.connect(path)
    (entries,), (rejected_rows,) = (
        connection.execute("SELECT count(*) FROM response").fetchone(),
        connection.execute("SELECT number FROM rejected").fetchone(),
    )
    connection.close()
    if not entries:
        raise UserError(
            f"MetaMathQA: none of its {rejected_rows} rows is usable: "
            "'query', 'response' and 'original_question' are expected"
        )
    return {"metamathqa_rows": entries, "metamathqa_rows_unusable": rejected_rows}


def _entries(sources: Iterable[Source], rejected: list[int]) -> Iterator[tuple[int, str, str]]:
    for source in sources:
        console = Console(stderr=True)
        for row in track(source.rows(), f"indexing {source.name}", console=console, transient=True):
            try:
                fields = row.fields()
                query, response = checked_text(fields, "query"), checked_text(fields, "response")
                original = checked_text(fields, "original_question") if "original_question" in fields else query
            except UserError:
                rejected[0] += 1
                continue
            yield _digest(response), query, original


class QuestionIndex:
    """The index of :func:`build_index`, opened for reading."""

    def __init__(self, path: Path):
        self._connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro&immutable=1", uri=True)

    def questions_of(self, response: str) -> list[tuple[str, str]]:
        """(query, original question) of each row with this response, however its white space is."""
        found = self._connection.execute(
            "SELECT DISTINCT query, original FROM response WHERE digest = ?", (_digest(response),)
        )
        return found.fetchall()


def _digest(response: str) -> int:
    """64 bits, signed. Other responses with the same ones do no harm: the prompt has to end with the question."""
    text = " ".join(response.split())
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big", signed=True)
