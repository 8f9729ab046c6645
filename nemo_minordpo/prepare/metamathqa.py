"""An index of MetaMathQA on disk: find the questions that have a given response."""

import hashlib
import sqlite3
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path

from nemo_minordpo.checked_json import checked_text
from nemo_minordpo.errors import UserError
from nemo_minordpo.prepare.sources import Source
from nemo_minordpo.terminal import progress_bar

INDEX_NAME = "metamathqa.sqlite"


def build_index(sources: Iterable[Source], path: Path) -> dict[str, int]:
    """Write responses with their questions to the file `path`. Returns counts.

    Raises:
        UserError: no row is usable, or a file cannot be read to its end.
    """
    usable = Counter[bool]()
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript("PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF;")
        connection.execute("CREATE TABLE response (digest INTEGER, query TEXT, original TEXT)")
        connection.executemany("INSERT INTO response VALUES (?, ?, ?)", _entries(sources, usable))
        connection.execute("CREATE INDEX by_digest ON response (digest)")
        connection.commit()
    if not usable[True]:
        raise UserError(
            f"MetaMathQA: none of its {usable[False]} rows is usable: "
            "'query', 'response' and 'original_question' are expected"
        )
    return {"metamathqa_rows": usable[True], "metamathqa_rows_unusable": usable[False]}


def _entries(sources: Iterable[Source], usable: Counter[bool]) -> Iterator[tuple[int, str, str]]:
    """(digest of the response, query, original question) of each usable row; counts usable and unusable rows."""
    with progress_bar("{task.completed:,} rows", counted=False, transient=True) as progress:
        for source in sources:
            for row in progress.track(source.rows(), description=f"indexing {source.name}"):
                try:
                    fields = row.fields()
                    query, response = checked_text(fields, "query"), checked_text(fields, "response")
                    original = checked_text(fields, "original_question") if "original_question" in fields else query
                except UserError:
                    usable[False] += 1
                    continue
                usable[True] += 1
                yield _digest(response), query, original


class QuestionIndex:
    """Reads the index written by :func:`build_index`."""

    def __init__(self, path: Path):
        self._connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro&immutable=1", uri=True)

    def questions_of(self, response: str) -> list[tuple[str, str]]:
        """(query, original question) of each row with this response; differences in white space do not matter."""
        found = self._connection.execute(
            "SELECT DISTINCT query, original FROM response WHERE digest = ?", (_digest(response),)
        )
        return found.fetchall()


def _digest(response: str) -> int:
    """A signed 64-bit digest. Collisions are harmless: the prompt must also end with the question."""
    text = " ".join(response.split())
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big", signed=True)
