"""Turn a chunk of rows into pairs and rejections: one unit of work for a process."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nemo_minordpo.errors import UserError
from nemo_minordpo.files import to_json_line
from nemo_minordpo.prepare.recipe import Made, MakePair, Recipe, reason_kind
from nemo_minordpo.prepare.rows import Row
from nemo_minordpo.prepare.statistics import MEASURES, measure
from nemo_minordpo.prepare.tally import SAMPLES, Tally
from nemo_minordpo.prepare.tracked_row import TrackedRow
from nemo_minordpo.records import PreferencePair

# Held in memory per pair until all rows are read: digests of its question and of all its texts, and its statistics.
PAIR = np.dtype([("question", "S16"), ("texts", "S16"), ("measures", np.float32, len(MEASURES))])
_REASON_CHARACTERS = 500
_TAIL_CHARACTERS = 700  # shown of a sample prompt: few-shot prompts are long, and their end matters


@dataclass(frozen=True, kw_only=True)
class MadeChunk:
    """The result for R rows, P of which became pairs.

    path: file with one line per row, see `make_record`.
    is_pair: [R], bool.
    pairs: [P], PAIR.
    """

    path: Path
    is_pair: np.ndarray
    pairs: np.ndarray
    tally: Tally


def make_chunk(path: Path, rows: list[Row], *, recipe: Recipe, make: MakePair) -> MadeChunk:
    """Make pairs from the rows and write them to `path` in order; `make` is the opened recipe."""
    records: list[bytes] = []
    is_pair: list[bool] = []
    questions: list[bytes] = []
    texts: list[bytes] = []
    measures: list[tuple[float, ...]] = []
    samples: list[tuple[str, str]] = []
    tally = Tally()
    for row in rows:
        place = row.place
        fields = made = None
        try:
            fields = TrackedRow(row.fields(), left_out=recipe.ignore_columns)
            made = make(fields, place, row.number)
            line = _line(made)
        except UserError as error:
            reason = str(error)[:_REASON_CHARACTERS]
            tally.rejected.count(reason_kind(reason), f"{place}: {reason}")
            records.append(make_record(place, rejection_line(place, reason)))
            is_pair.append(False)
            continue
        records.append(make_record(place, line, doubt=made.doubt))
        is_pair.append(True)
        questions.append(question_digest(made.question, seed=recipe.seed))
        texts.append(_texts_digest(made.pair))
        measures.append(measure(made.pair))
        _count(tally, place, made, fields)
        if made.before:
            samples.append((made.before, made.pair.prompt))
    shown = samples[:: max(1, len(samples) // SAMPLES)][:SAMPLES]
    tally.samples = [(_tail(before), after) for before, after in shown]
    path.write_bytes(b"".join(records))
    pairs = np.empty(len(texts), dtype=PAIR)
    if texts:
        pairs["question"], pairs["texts"], pairs["measures"] = questions, texts, measures
    return MadeChunk(
        path=path,
        is_pair=np.array(is_pair, dtype=bool),
        pairs=pairs,
        tally=tally,
    )


def _count(tally: Tally, place: str, made: Made, fields: TrackedRow) -> None:
    if made.doubt:
        tally.doubted.count(reason_kind(made.doubt), f"{place}: {made.doubt}")
    for text in filter(None, made.notes):
        note, *lines = text.split("\n")
        tally.notes.count(note, [place, *lines])
    unread = fields.unread(made.pair, question=made.question)
    for name in unread.names:
        tally.unread.count(name, place)
    for name in unread.lost:
        tally.lost.count(name, place)


def make_record(place: str, line: bytes, *, doubt: str = "") -> bytes:
    r"""A row's record: its place, the doubt about its pair, and the line of the pair or the rejection.

    The three are separated by tabs; tabs inside the first two are escaped, see `read_text`.
    """
    return b"\t".join((place.encode("unicode_escape"), doubt.encode("unicode_escape"), line))


def read_text(escaped: bytes) -> str:
    """Decode the place or the doubt of a record."""
    return escaped.decode("unicode_escape")


def rejection_line(place: str, reason: str) -> bytes:
    return to_json_line({"source": place, "reason": reason}).encode(errors="backslashreplace")


def question_digest(question: str, *, seed: int) -> bytes:
    """A digest of the question that ignores white space and case; the order of the digests determines the split."""
    text = f"{seed}:{' '.join(question.lower().split())}"
    return hashlib.sha256(text.encode(errors="surrogatepass")).digest()[:16]


def _texts_digest(pair: PreferencePair) -> bytes:
    texts = json.dumps([pair.prompt, pair.chosen_response, pair.rejected_response])
    return hashlib.blake2b(texts.encode(), digest_size=16).digest()


def _line(made: Made) -> bytes:
    """The jsonl line of a pair.

    Raises:
        UserError: training would not accept it.
    """
    pair = made.pair
    if "\0" in pair.prompt or "\0" in pair.chosen_response or "\0" in pair.rejected_response:
        raise UserError("NUL character in a text: tokenizers and other tools cut the text there")
    line = to_json_line(vars(pair) | made.origin)
    PreferencePair.from_json(line)
    # A file name may contain bytes that are not text; the texts of a pair may not.
    return line.encode(errors="backslashreplace")


def _tail(text: str) -> str:
    cut = len(text) - _TAIL_CHARACTERS
    return text.rstrip("\n") if cut <= 0 else f"[{cut:,} characters] ...{text[cut:]}".rstrip("\n")
