"""A chunk of rows made into pairs and rejections, kept on the disk until the data set is whole."""

import hashlib
import json
import os
import zipfile
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from nemo_minordpo.errors import UserError
from nemo_minordpo.files import to_json_line
from nemo_minordpo.prepare.recipe import Made, MakePair, reason_kind
from nemo_minordpo.prepare.sources import Row
from nemo_minordpo.prepare.statistics import MEASURES, measure
from nemo_minordpo.prepare.tracked_row import TrackedRow
from nemo_minordpo.records import PreferencePair

_SAMPLES = 5
_REASON_CHARACTERS = 500


def write_part(
    path: Path, rows: list[Row], *, make: MakePair, seed: int, ignore_columns: Sequence[str] = ()
) -> tuple[int, int]:
    """Make what the rows give and write it, whole or not at all. Returns the numbers of pairs and of rejections."""
    made, lines = [], []
    unread: Counter[str] = Counter()
    lost: dict[str, list[str]] = {}  # name -> places
    for row in rows:
        try:
            fields = TrackedRow(row.fields(), left_out=ignore_columns)
            one = make(fields, row.place, row.number)
            line = _line(one)
        except UserError as error:
            one = str(error)[:_REASON_CHARACTERS]
            line = rejection_line(row.place, one)
        else:
            left = fields.unread(one.pair, question=one.question)
            unread.update(left.names)
            for name in left.lost:
                lost.setdefault(name, []).append(row.place)
        made.append(one)
        lines.append(line)
    pairs = [one for one in made if isinstance(one, Made)]
    sources = list(dict.fromkeys(row.source for row in rows))
    summary = {
        "sources": sources,
        "kinds": Counter(reason_kind(one) for one in made if isinstance(one, str)),
        "notes": Counter(note.partition("\n")[0] for one in pairs for note in one.notes if note),
        "examples": _examples(rows, made),
        "unread": unread,
        "lost": {name: (len(places), places[0]) for name, places in lost.items()},
        "doubts": [
            (row.place, one.doubt) for row, one in zip(rows, made, strict=True) if isinstance(one, Made) and one.doubt
        ],
        "samples": [
            (one.before, one.pair.prompt) for one in pairs[:: max(1, len(pairs) // _SAMPLES)][:_SAMPLES] if one.before
        ],
    }
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with temporary.open("wb") as out:
        np.savez(
            out,
            text=np.frombuffer(b"".join(lines), dtype=np.uint8),
            ends=np.cumsum([0, *map(len, lines)], dtype=np.int64),
            is_pair=np.array([isinstance(one, Made) for one in made], dtype=bool),
            source=np.array([sources.index(row.source) for row in rows], dtype=np.int32),
            number=np.array([row.number for row in rows], dtype=np.int64),
            question=np.array([question_digest(one.question, seed=seed) for one in pairs], dtype="S16"),
            pair=np.array([_pair_digest(one.pair) for one in pairs], dtype="S16"),
            measures=np.array([measure(one.pair) for one in pairs], dtype=np.float32).reshape(-1, len(MEASURES)),
            summary=np.frombuffer(json.dumps(summary).encode(), dtype=np.uint8),
        )
    os.replace(temporary, path)
    return len(pairs), len(rows) - len(pairs)


def _examples(rows: list[Row], made: list[Made | str]) -> dict[str, list[str]]:
    """Of each note that has more lines the first row: its place, and the lines."""
    examples: dict[str, list[str]] = {}
    for row, one in zip(rows, made, strict=True):
        for text in one.notes if isinstance(one, Made) else ():
            note, *lines = text.split("\n")
            if lines:
                examples.setdefault(note, [row.place, *lines])
    return examples


class Part:
    """A chunk as :func:`write_part` left it; arrays are read when they are asked for.

    The arrays `question`, `pair` and `measures` have one entry a pair, the others one a row.
    """

    def __init__(self, path: Path):
        """Raises ValueError where the file is damaged."""
        self._path = path
        try:
            self._arrays = np.load(path)
        except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
            raise self._damaged(error) from error
        self.summary: dict[str, Any] = json.loads(self.array("summary").tobytes())

    def array(self, name: str) -> np.ndarray:
        try:
            return self._arrays[name]
        except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
            raise self._damaged(error) from error

    def _damaged(self, error: Exception) -> ValueError:
        return ValueError(f"{self._path}: damaged ({error}): delete it and start the same command again")

    def places(self) -> list[str]:
        """file:line of each row."""
        sources = self.summary["sources"]
        return [
            f"{sources[source]}:{number}"
            for source, number in zip(self.array("source").tolist(), self.array("number").tolist(), strict=True)
        ]

    def lines(self) -> Iterator[bytes]:
        """Of each row the line of its pair, or of its rejection."""
        text, ends = self.array("text").tobytes(), self.array("ends").tolist()
        for start, end in pairwise(ends):
            yield text[start:end]

    def close(self) -> None:
        self._arrays.close()


def question_digest(question: str, *, seed: int) -> bytes:
    """What is equal for one question, however its spaces and letters' case are; its order draws the split."""
    text = f"{seed}:{' '.join(question.lower().split())}"
    return hashlib.sha256(text.encode(errors="surrogatepass")).digest()[:16]


def rejection_line(place: str, reason: str) -> bytes:
    return to_json_line({"source": place, "reason": reason}).encode(errors="backslashreplace")


def _line(made: Made) -> bytes:
    """The line of a pair.

    Raises:
        ValueError: training would not accept it.
    """
    pair = made.pair
    if "\0" in pair.prompt or "\0" in pair.chosen_response or "\0" in pair.rejected_response:
        raise UserError("NUL character in a text: tokenizers and other tools cut it there")
    line = to_json_line(vars(pair) | made.origin)
    PreferencePair.from_json(line)
    # A file name may hold bytes that are no text; the texts of a pair may not.
    return line.encode(errors="backslashreplace")


def _pair_digest(pair: PreferencePair) -> bytes:
    texts = json.dumps([pair.prompt, pair.chosen_response, pair.rejected_response])
    return hashlib.blake2b(texts.encode(), digest_size=16).digest()
