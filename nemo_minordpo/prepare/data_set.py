"""Write the files of a data set from all its rows, or say why it cannot be built."""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nemo_minordpo import file_names
from nemo_minordpo.errors import UserError
from nemo_minordpo.files import whole_file, write_json
from nemo_minordpo.prepare.chunk import read_text, rejection_line
from nemo_minordpo.prepare.split import DUPLICATE, SAME_QUESTION, TRAIN, VALIDATION, decide
from nemo_minordpo.prepare.statistics import draw_histograms, summarise
from nemo_minordpo.prepare.tally import Counts, Tally
from nemo_minordpo.records import Manifest

REJECTED_FILE = "rejected_rows.jsonl"
OUTPUT_FILES = (
    file_names.TRAIN, file_names.VALIDATION, REJECTED_FILE, file_names.MANIFEST, "statistics.json", "statistics.png",
)  # fmt: skip
_REASON = {
    DUPLICATE: "duplicate: same prompt and responses as {place}",
    SAME_QUESTION: "another pair for the same question: {place} is kept",
}
_REASONS_SHOWN = 5


@dataclass(frozen=True, kw_only=True)
class MadeRows:
    """All R rows of a build in order; P of them became pairs.

    paths: files with one record per row, see `chunk.make_record`.
    is_pair: [R], bool.
    pairs: [P], chunk.PAIR.
    """

    paths: list[Path]
    is_pair: np.ndarray
    pairs: np.ndarray
    tally: Tally

    def records(self) -> Iterator[tuple[list[bytes], bool]]:
        """For each row: ([place, doubt, line], whether the line is a pair)."""
        is_pair = iter(self.is_pair)
        for path in self.paths:
            with path.open("rb") as records:
                for record in records:
                    yield record.split(b"\t", 2), next(is_pair)


def refuse_unusable(rows: MadeRows, *, max_rejected: float, no_fault: Sequence[str], rejected_file: Path) -> None:
    """Refuse rows that cannot become a data set.

    Args:
        rows: all rows.
        max_rejected: share of rejected rows above which nothing is written.
        no_fault: kinds of reasons that do not count towards it, see `Recipe`.
        rejected_file: receives the rejected rows if there are too many.

    Raises:
        UserError: there are no pairs, too many rejected rows, or columns that would be lost.
    """
    num_rows, num_pairs = len(rows.is_pair), len(rows.pairs)
    doubted = rows.tally.doubted.numbers().total()
    number = num_rows - num_pairs + doubted - sum(rows.tally.rejected.numbers()[kind] for kind in no_fault)
    if num_pairs and number <= max_rejected * num_rows:
        if rows.tally.lost:
            raise UserError(_what_is_lost(rows.tally.lost))
        return
    with whole_file(rejected_file, "wb") as out:
        for (place, doubt, line), is_pair in rows.records():
            if doubt or not is_pair:
                out.write(rejection_line(read_text(place), read_text(doubt)) if doubt else line)
    if num_pairs:
        unchanged = " or are left unchanged" if doubted else ""
        problem = (
            f"{number:,} of {num_rows:,} rows ({number / num_rows:.1%}) cannot be used{unchanged}, "
            f"more than --max-rejected {max_rejected:g} allows"
        )
    else:
        problem = f"none of the {num_rows:,} rows gives a pair"
    lines = [f"{problem}; the most frequent reasons, each with its first row:"]
    kinds = rows.tally.rejected.numbers() + rows.tally.doubted.numbers()
    examples = rows.tally.rejected | rows.tally.doubted
    lines += [f"  {count:,} x {examples[kind][1]}" for kind, count in kinds.most_common(_REASONS_SHOWN)]
    lines.append(f"all rejected rows: {rejected_file}")
    if num_pairs:
        lines.append("fix the rows or the options, or build without these rows: pass a larger --max-rejected")
    raise UserError("\n".join(lines))


def _what_is_lost(lost: Counts) -> str:
    """The error for columns and keys that carry meaning but would be missing from the pairs."""
    lines = ["the pairs would lose columns or keys that carry meaning:"]
    lines += [f"  {number:,} x {name}, first at {place}" for name, (number, place) in lost.items()]
    names = dict.fromkeys(name.partition(" in ")[0] for name in lost)
    lines.append(
        "to use one, name its column (prepare hf has options for that) or choose a chat template that shows it; "
        f"to build without them: --ignore-columns {','.join(names)}"
    )
    return "\n".join(lines)


def write_data_set(
    rows: MadeRows, folder: Path, *, manifest: Manifest, num_validation: int, one_per_question: bool
) -> None:
    """Write the files of the data set, and add its counts to the manifest.

    Args:
        rows: all rows; see `refuse_unusable`.
        folder: created if missing.
        manifest: gets `counts`, `rejected` and `unread`, and is written last.
        num_validation: pairs to hold out.
        one_per_question: use only the first pair of each question.

    Raises:
        UserError: the split is impossible.
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
    """Write the train, validation and rejected lines, each in row order."""
    named = set(first[fate > VALIDATION].tolist())  # pairs that another pair's reason names
    place_of: dict[int, str] = {}
    fates = enumerate(zip(fate.tolist(), first, strict=True))
    with ExitStack() as stack:
        names = {TRAIN: file_names.TRAIN, DUPLICATE: REJECTED_FILE}
        if VALIDATION in fate:
            names[VALIDATION] = file_names.VALIDATION
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
