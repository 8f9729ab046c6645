"""The files of a data set, written from all its rows, or why none is."""

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nemo_minordpo.errors import UserError
from nemo_minordpo.files import whole_file, write_json
from nemo_minordpo.prepare.chunk import read_text, rejection_line
from nemo_minordpo.prepare.split import DUPLICATE, SAME_QUESTION, TRAIN, VALIDATION, decide
from nemo_minordpo.prepare.statistics import draw_histograms, summarise
from nemo_minordpo.prepare.tally import Counts, Tally
from nemo_minordpo.records import Manifest

TRAIN_FILE, VALIDATION_FILE, REJECTED_FILE = "train.jsonl", "validation.jsonl", "rejected_rows.jsonl"
OUTPUT_FILES = (
    TRAIN_FILE, VALIDATION_FILE, REJECTED_FILE, "manifest.json", "statistics.json", "statistics.png",
)  # fmt: skip
_REASON = {
    DUPLICATE: "duplicate: prompt and responses are those of {place}",
    SAME_QUESTION: "another pair of the question: {place} is kept",
}
_REASONS_SHOWN = 5


@dataclass(frozen=True, kw_only=True)
class MadeRows:
    """All rows of a build in their order, R of them, of which P became pairs.

    paths: files with a record a row, see `chunk.make_record`.
    is_pair: [R], bool.
    pairs: [P], chunk.PAIR.
    """

    paths: list[Path]
    is_pair: np.ndarray
    pairs: np.ndarray
    tally: Tally

    def records(self) -> Iterator[tuple[list[bytes], bool]]:
        """([place, doubt, line], whether it is the line of a pair) of each row."""
        is_pair = iter(self.is_pair)
        for path in self.paths:
            with path.open("rb") as records:
                for record in records:
                    yield record.split(b"\t", 2), next(is_pair)


def refuse_unusable(rows: MadeRows, *, max_rejected: float, rejected_file: Path) -> None:
    """Refuse rows of which no data set is made.

    Args:
        rows: all of them.
        max_rejected: share of the rows above which nothing is written.
        rejected_file: where the rejected rows are left when they are too many.

    Raises:
        UserError: no pair, too many rejected rows, or columns that would be lost.
    """
    num_rows, num_pairs = len(rows.is_pair), len(rows.pairs)
    doubted = rows.tally.doubted.numbers().total()
    number = num_rows - num_pairs + doubted
    if num_pairs and number <= max_rejected * num_rows:
        if rows.tally.lost:
            raise UserError(_what_is_lost(rows.tally.lost))
        return
    with whole_file(rejected_file, "wb") as out:
        for (place, doubt, line), is_pair in rows.records():
            if doubt or not is_pair:
                out.write(rejection_line(read_text(place), read_text(doubt)) if doubt else line)
    if num_pairs:
        kept = " or are kept as they were" if doubted else ""
        told = (
            f"{number:,} of {num_rows:,} rows ({number / num_rows:.1%}) cannot be used{kept}, "
            f"more than --max-rejected {max_rejected:g} allows"
        )
    else:
        told = f"no pair can be made of any of the {num_rows:,} rows"
    lines = [f"{told}; the most frequent reasons, each with its first row:"]
    kinds = rows.tally.rejected.numbers() + rows.tally.doubted.numbers()
    examples = rows.tally.rejected | rows.tally.doubted
    lines += [f"  {count:,} x {examples[kind][1]}" for kind, count in kinds.most_common(_REASONS_SHOWN)]
    lines.append(f"all of them: {rejected_file}")
    if num_pairs:
        lines.append("correct the rows or the options, or build without those rows: --max-rejected with a larger share")
    raise UserError("\n".join(lines))


def _what_is_lost(lost: Counts) -> str:
    """Why nothing is written: what the rows hold, carries meaning, and would be missing in the pairs."""
    lines = ["the pairs would lack what carries meaning in their rows:"]
    lines += [f"  {number:,} x {name}, first at {place}" for name, (number, place) in lost.items()]
    names = dict.fromkeys(name.partition(" in ")[0] for name in lost)
    lines.append(
        "to use it, name its column (prepare hf has options for that), or choose a chat template that shows it; "
        f"to build without it: --ignore-columns {','.join(names)}"
    )
    return "\n".join(lines)


def write_data_set(
    rows: MadeRows, folder: Path, *, manifest: Manifest, num_validation: int, one_per_question: bool
) -> None:
    """Write the files of the data set, and its counts into the manifest.

    Args:
        rows: all of them; see `refuse_unusable`.
        folder: made when it is not there.
        manifest: gets `counts`, `rejected` and `unread`, and is written last.
        num_validation: pairs to hold out.
        one_per_question: leave out all pairs of a question but the first.

    Raises:
        UserError: a split that cannot be.
    """
    fate, first = decide(
        texts=rows.pairs["texts"],
        questions=rows.pairs["question"],
        num_validation=num_validation,
        one_per_question=one_per_question,
    )
    _write_lines(rows, folder, fate=fate, first=first)
    kept = fate <= VALIDATION
    num_pairs, measures = int(kept.sum()), rows.pairs["measures"][kept]
    counts = {
        "rows": len(rows.is_pair),
        "pairs": num_pairs,
        "rejected": len(rows.is_pair) - num_pairs,
        "train": int((fate == TRAIN).sum()),
        "validation": int((fate == VALIDATION).sum()),
        "repeated_questions": num_pairs - len(np.unique(rows.pairs["question"][kept])),
    }
    notes = rows.tally.notes.numbers()
    manifest.counts = counts | manifest.counts | {f"note: {note}": number for note, number in notes.items()}
    left_out = Counter({reason.split(":")[0]: int((fate == what).sum()) for what, reason in _REASON.items()})
    manifest.rejected = dict((rows.tally.rejected.numbers() + left_out).most_common())
    manifest.unread = dict(rows.tally.unread.numbers().most_common())
    write_json(folder / "statistics.json", summarise(measures))
    draw_histograms(measures, folder / "statistics.png")
    manifest.write(folder)


def _write_lines(rows: MadeRows, folder: Path, *, fate: np.ndarray, first: np.ndarray) -> None:
    """Write train, validation and rejected lines, each in the order of the rows."""
    named = set(first[fate > VALIDATION].tolist())  # pairs that the reason of another one names
    place_of: dict[int, str] = {}
    fates = enumerate(zip(fate.tolist(), first, strict=True))
    with ExitStack() as stack:
        names = {TRAIN: TRAIN_FILE, DUPLICATE: REJECTED_FILE}
        if VALIDATION in fate:
            names[VALIDATION] = VALIDATION_FILE
        out = {what: stack.enter_context(whole_file(folder / name, "wb")) for what, name in names.items()}
        for (place, _, line), is_pair in rows.records():
            if not is_pair:
                out[DUPLICATE].write(line)
                continue
            pair, (what, earlier) = next(fates)
            if pair in named:
                place_of[pair] = read_text(place)
            if what > VALIDATION:
                reason = _REASON[what].format(place=place_of[earlier])
                out[DUPLICATE].write(rejection_line(read_text(place), reason))
            else:
                out[what].write(line)
