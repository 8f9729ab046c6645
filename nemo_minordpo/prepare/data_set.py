"""The end of a build: what is left out as a duplicate, what is held out for validation, and the files."""

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nemo_minordpo.errors import UserError
from nemo_minordpo.files import write_json
from nemo_minordpo.prepare.chunk import Part, rejection_line
from nemo_minordpo.prepare.recipe import reason_kind
from nemo_minordpo.prepare.statistics import draw_histograms, summarise
from nemo_minordpo.records import Manifest

OUTPUT_FILES = (
    "train.jsonl", "validation.jsonl", "rejected_rows.jsonl", "manifest.json", "statistics.json", "statistics.png",
)  # fmt: skip
_TRAIN, _VALIDATION, _DUPLICATE, _SAME_QUESTION = range(4)
_REASONS_SHOWN = 5


@dataclass(frozen=True, kw_only=True)
class Finish:
    """How a data set ends; as in BuildOptions."""

    num_validation: int
    one_per_question: bool
    max_rejected: float


@dataclass(frozen=True)
class _Found:
    """What is known of all rows; R rows, P pairs."""

    is_pair: np.ndarray  # [R], bool
    question: np.ndarray  # [P], digests
    pair: np.ndarray  # [P], digests
    measures: np.ndarray  # [P, measures]
    kinds: Counter[str]
    notes: Counter[str]
    doubts: list[tuple[str, str]]  # (place, reason) of pairs that are kept though they should be rejected
    unread: Counter[str]  # what rows hold and their pairs do not -> rows
    lost: dict[str, tuple[int, str]]  # those that carry meaning -> rows, place of the first


def write_data_set(
    paths: list[Path], staged: Path, *, manifest: Manifest, finish: Finish, num_rows: int, scratch: Path
) -> None:
    """Write the files of the data set into the folder `staged`, and its counts into `manifest`.

    Args:
        paths: the parts, in the order of the rows.
        staged: made anew.
        manifest: gets `counts`, `rejected` and `unread`, and is written last.
        finish: see there.
        num_rows: as many as were read.
        scratch: where the rejected rows are left when they are too many.

    Raises:
        ValueError: no pair, too many rejected rows, columns that would be lost, or a split that cannot be.
    """
    found = _look_through(paths)
    num_pairs, num_rejected = len(found.pair), num_rows - len(found.pair)
    assert len(found.is_pair) == num_rows, f"{num_rows} rows were read, {len(found.is_pair)} lie in parts"
    if not num_pairs or num_rejected + len(found.doubts) > finish.max_rejected * num_rows:
        raise UserError(_refusal(paths, found, finish, scratch))
    if found.lost:
        raise UserError(_what_is_lost(found.lost))
    fate, first = _fates(found, finish)
    staged.mkdir(exist_ok=True)
    for left in staged.iterdir():  # of an interrupted build
        left.unlink()
    written = _write_lines(paths, staged, fate=fate, first=first)
    kept = fate <= _VALIDATION
    counts = {
        "rows": num_rows,
        "pairs": int(kept.sum()),
        "rejected": num_rejected + int((~kept).sum()),
        "train": int((fate == _TRAIN).sum()),
        "validation": int((fate == _VALIDATION).sum()),
        "repeated_questions": int(kept.sum()) - len(np.unique(found.question[kept])),
    }
    assert counts["pairs"] + counts["rejected"] == num_rows, counts
    assert written == [counts["train"], counts["validation"], counts["rejected"]], (written, counts)
    manifest.counts = counts | manifest.counts | {f"note: {note}": number for note, number in found.notes.items()}
    manifest.rejected = dict((found.kinds + _left_out(fate)).most_common())
    manifest.unread = dict(found.unread.most_common())
    summary = summarise(found.measures[kept])
    write_json(staged / "statistics.json", summary)
    draw_histograms(found.measures[kept], staged / "statistics.png")
    manifest.write(staged)


def _look_through(paths: list[Path]) -> _Found:
    columns: dict[str, list[np.ndarray]] = {"is_pair": [], "question": [], "pair": [], "measures": []}
    kinds: Counter[str] = Counter()
    notes: Counter[str] = Counter()
    doubts: list[tuple[str, str]] = []
    unread: Counter[str] = Counter()
    lost: dict[str, tuple[int, str]] = {}
    for part in _opened(paths):
        for name, arrays in columns.items():
            arrays.append(part.array(name))
        kinds.update(part.summary["kinds"])
        notes.update(part.summary["notes"])
        doubts += part.summary["doubts"]
        unread.update(part.summary["unread"])
        for name, (number, place) in part.summary["lost"].items():
            before, first = lost.get(name, (0, place))
            lost[name] = before + number, first
    if not paths:
        raise UserError("no rows: the sources are empty")
    return _Found(
        **{name: np.concatenate(arrays) for name, arrays in columns.items()},
        kinds=kinds,
        notes=notes,
        doubts=doubts,
        unread=unread,
        lost=lost,
    )


def _opened(paths: list[Path]) -> Iterator[Part]:
    for path in paths:
        part = Part(path)
        yield part
        part.close()


def _fates(found: _Found, finish: Finish) -> tuple[np.ndarray, np.ndarray]:
    """([P]: what becomes of each pair, [P]: the first pair of those that are equal to it, or have its question)."""
    first = _first_of_each(found.pair)
    fate = np.where(first == np.arange(len(first)), _TRAIN, _DUPLICATE)
    if finish.one_per_question:
        (kept,) = np.nonzero(fate == _TRAIN)
        first_kept = kept[_first_of_each(found.question[kept])]
        fate[kept[first_kept != kept]] = _SAME_QUESTION
        first[kept] = first_kept
    (kept,) = np.nonzero(fate == _TRAIN)
    fate[kept[_held_out(found.question[kept], num_validation=finish.num_validation)]] = _VALIDATION
    return fate, first


def _first_of_each(digests: np.ndarray) -> np.ndarray:
    """[N]: the first place of each entry's equals."""
    _, first, inverse = np.unique(digests, return_index=True, return_inverse=True)
    return first[inverse.reshape(-1)]


def _held_out(questions: np.ndarray, *, num_validation: int) -> np.ndarray:
    """[N] bool: the pairs for validation; all pairs of a question are on one side.

    Questions are drawn in the order of their digests, which depends on the seed, and taken while they fit: fewer than
    `num_validation` are held out where all questions that are left have more pairs than there is room for.

    Raises:
        ValueError: no pair would be left to train on, or none could be held out.
    """
    digests, inverse, sizes = np.unique(questions, return_inverse=True, return_counts=True)
    taken = np.zeros(len(digests), dtype=bool)
    room = num_validation
    for place, size in enumerate(sizes.tolist()):
        if not room:
            break
        if size <= room:
            taken[place] = True
            room -= size
    if num_validation >= len(questions) or room == num_validation > 0:
        raise UserError(
            f"num_validation is {num_validation}, but there are {len(questions)} pairs of {len(digests)} questions, "
            "and a question stays on one side: hold out fewer, or read more rows"
        )
    return taken[inverse.reshape(-1)]


def _write_lines(paths: list[Path], staged: Path, *, fate: np.ndarray, first: np.ndarray) -> list[int]:
    """Write train, validation and rejected lines; returns how many of each."""
    fates, firsts = fate.tolist(), first.tolist()
    named = set(first[fate > _VALIDATION].tolist())  # pairs that the reason of another one names
    place_of: dict[int, str] = {}
    written = [0, 0, 0]
    pair = 0
    with ExitStack() as stack:
        names = ["train.jsonl", "rejected_rows.jsonl"] + (["validation.jsonl"] if _VALIDATION in fates else [])
        files = {name: stack.enter_context((staged / name).open("wb")) for name in names}
        for part in _opened(paths):
            for line, place, is_pair in zip(part.lines(), part.places(), part.array("is_pair").tolist(), strict=True):
                what = fates[pair] if is_pair else _DUPLICATE
                if not is_pair:
                    files["rejected_rows.jsonl"].write(line)
                elif what == _TRAIN:
                    files["train.jsonl"].write(line)
                elif what == _VALIDATION:
                    files["validation.jsonl"].write(line)
                else:
                    reason = _REASON[what].format(place=place_of[firsts[pair]])
                    files["rejected_rows.jsonl"].write(rejection_line(place, reason))
                if is_pair and pair in named:
                    place_of[pair] = place
                pair += is_pair
                written[min(what, 2)] += 1
    return written


_REASON = {
    _DUPLICATE: "duplicate: prompt and responses are those of {place}",
    _SAME_QUESTION: "another pair of the question: {place} is kept",
}


def _left_out(fate: np.ndarray) -> Counter[str]:
    numbers = {text.split(":")[0]: int((fate == what).sum()) for what, text in _REASON.items()}
    return Counter({kind: number for kind, number in numbers.items() if number})


def _what_is_lost(lost: dict[str, tuple[int, str]]) -> str:
    """Why nothing is written: what the rows hold, carries meaning, and would be missing in the pairs."""
    lines = ["the pairs would lack what carries meaning in their rows:"]
    lines += [f"  {number:,} x {name}, first at {place}" for name, (number, place) in lost.items()]
    names = dict.fromkeys(name.partition(" in ")[0] for name in lost)
    lines.append(
        "to use it, name its column (prepare hf has options for that), or choose a chat template that shows it; "
        f"to build without it: --ignore-columns {','.join(names)}"
    )
    return "\n".join(lines)


def _refusal(paths: list[Path], found: _Found, finish: Finish, scratch: Path) -> str:
    """Why nothing is written: the most frequent reasons with the first row of each; all rows are left in a file."""
    rejected = scratch / "rejected_rows.jsonl"
    num_rows, num_pairs = len(found.is_pair), len(found.pair)
    examples = {reason_kind(reason): f"{place}: {reason}" for place, reason in reversed(found.doubts)}
    kinds = found.kinds + Counter(reason_kind(reason) for _, reason in found.doubts)
    with rejected.open("wb") as out:
        out.writelines(rejection_line(place, reason) for place, reason in found.doubts)
        for part in _opened(paths):
            for line, is_pair in zip(part.lines(), part.array("is_pair").tolist(), strict=True):
                if not is_pair:
                    out.write(line)
                    row = json.loads(line)
                    examples.setdefault(reason_kind(row["reason"]), f"{row['source']}: {row['reason']}")
    number = num_rows - num_pairs + len(found.doubts)
    if num_pairs:
        kept = " or are kept as they were" if found.doubts else ""
        told = (
            f"{number:,} of {num_rows:,} rows ({number / num_rows:.1%}) cannot be used{kept}, "
            f"more than --max-rejected {finish.max_rejected:g} allows"
        )
    else:
        told = f"no pair can be made of any of the {num_rows:,} rows"
    lines = [f"{told}; the most frequent reasons, each with its first row:"]
    lines += [f"  {count:,} x {examples[kind]}" for kind, count in kinds.most_common(_REASONS_SHOWN)]
    lines.append(f"all of them: {rejected}")
    if num_pairs:
        lines.append("mend the rows or the options, or go on without those rows: --max-rejected with a larger share")
    return "\n".join(lines)
