"""Build a data set of pairs from rows: in chunks, in several processes, published in one rename.

Rows are split into chunks in order. Worker processes turn each chunk into a file of pairs. After the last row, the
build decides which pairs are duplicates and which are held out, and writes the data set from the chunk files. Memory
holds the chunks in flight, plus two digests and a few numbers per pair. Everything is written to `.NAME.partial` next
to the output; the finished folder is renamed into place.
"""

import itertools
import os
import shutil
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from nemo_minordpo.core.chat_template import date_line
from nemo_minordpo.errors import UserError
from nemo_minordpo.files import publish, refuse_existing, replaced_by
from nemo_minordpo.prepare.chunk import PAIR
from nemo_minordpo.prepare.data_set import (
    OUTPUT_FILES,
    REJECTED_FILE,
    MadeRows,
    refuse_unusable,
    write_data_set,
)
from nemo_minordpo.prepare.recipe import Recipe
from nemo_minordpo.prepare.rows import Row
from nemo_minordpo.prepare.show import report_of, show
from nemo_minordpo.prepare.sources import HubSet, Source
from nemo_minordpo.prepare.tally import Tally
from nemo_minordpo.prepare.workers import made_in_order
from nemo_minordpo.records import Manifest
from nemo_minordpo.terminal import progress_bar, say

CHUNK_ROWS = 1000
_CHUNK_BYTES = 8 << 20
_FEWEST_CHUNKS = 4  # with fewer, the work is done before the first process has started
_LOCK, _STAGED = "lock", "staged"  # in the scratch folder


@dataclass(frozen=True, kw_only=True)
class BuildOptions:
    """Options that apply to the whole data set.

    num_validation: pairs to hold out; 0 writes no validation file.
    one_per_question: use only the first pair of each question.
    max_rejected: share of the rows above which nothing is written.
    limit: number of rows to read, from the first; None reads all.
    workers: processes that make pairs; None = one per core.
    overwrite: replace the output of an earlier build.
    """

    num_validation: int = 0
    one_per_question: bool = False
    max_rejected: float = 0.01
    limit: int | None = None
    workers: int | None = None
    overwrite: bool = False

    def __post_init__(self) -> None:
        if self.num_validation < 0:
            raise UserError(f"num_validation is {self.num_validation}: it must be 0 or more")
        if not 0 <= self.max_rejected <= 1:
            raise UserError(f"max_rejected is {self.max_rejected}: it must be a share from 0 to 1")
        for name, value in (("limit", self.limit), ("workers", self.workers)):
            if value is not None and value < 1:
                raise UserError(f"{name} is {value}: it must be 1 or more (leave it out for all)")

    def settings(self) -> dict[str, Any]:
        """The options that the data set depends on."""
        return {name: value for name, value in asdict(self).items() if name not in ("workers", "overwrite")}


def build(recipe: Recipe, sources: list[Source], output: Path, options: BuildOptions) -> Manifest:
    """Write the data set that `recipe` makes from `sources` to the folder `output`, complete or not at all.

    Files: `train.jsonl`, `validation.jsonl` if requested, `rejected_rows.jsonl` (where, why), `manifest.json`,
    `statistics.json` and `statistics.png`. Every row becomes a pair or a rejected row. The output depends only on the
    rows and settings, not on the number of processes. After an interruption, the next build starts over.

    Raises:
        UserError: the output exists, a file cannot be read to its end, more rows than `max_rejected` are rejected, or
            another process is building the same output.
    """
    _refuse_foreign(output, overwrite=options.overwrite)
    chat = recipe.prompting.open()  # report a bad template before doing any work
    if chat is not None and chat.advice:
        say(chat.advice)
    if chat is not None and chat.date is not None:
        recipe = recipe.dated(chat.date)  # one date for all prompts, even those made after midnight
        say(date_line(chat.date))
    with _scratch(output, overwrite=options.overwrite) as scratch:
        manifest = Manifest(
            stage=recipe.stage,
            inputs={source.name: source.identity() for source in sources} | recipe.identities(),
            settings=recipe.settings() | options.settings(),
            counts=recipe.begin(scratch, sources),
            roles={
                "sources": [source.name for source in sources],
                "hub": [source.name for source in sources if isinstance(source, HubSet)],
            },
        )
        rows = _made_rows(recipe, sources, scratch, options)
        refuse_unusable(
            rows, max_rejected=options.max_rejected, no_fault=recipe.no_fault, rejected_file=scratch / REJECTED_FILE
        )
        staged = scratch / _STAGED
        write_data_set(
            rows,
            staged,
            manifest=manifest,
            num_validation=options.num_validation,
            one_per_question=options.one_per_question,
        )
        report = report_of(staged, output, manifest=manifest, tally=rows.tally)
        publish(staged, _place(output))
    show(report)
    return manifest


def _refuse_foreign(output: Path, *, overwrite: bool) -> None:
    """The output is replaced as a whole, so refuse a folder that contains other files."""
    refuse_existing(output, overwrite=overwrite)
    if output.exists() and not output.is_dir():
        raise UserError(f"{output} is a file: name a folder")
    found = [path.name for path in output.iterdir()] if output.exists() else []
    foreign = sorted(set(found) - set(OUTPUT_FILES))
    if foreign:
        raise UserError(
            f"{output} contains files that `minordpo prepare` did not write ({', '.join(foreign[:3])}) and would be "
            "replaced as a whole: choose another folder"
        )


def _place(output: Path) -> Path:
    """The real path of the output, which may be given as a link or as `.`."""
    return Path(os.path.realpath(output))


@contextmanager
def _scratch(output: Path, *, overwrite: bool) -> Iterator[Path]:
    """An empty folder next to the output, locked by this process; only rejected rows may remain afterwards."""
    place = _place(output)
    scratch = place.parent / f".{place.name}.partial"
    scratch.mkdir(parents=True, exist_ok=True)
    lock = FileLock(scratch / _LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise UserError(f"{output}: another process is building it: wait for it, or choose another folder") from None
    try:
        _clear(scratch, place, but=[_LOCK])  # left by a build that was killed
        refuse_existing(output, overwrite=overwrite)  # another build may just have finished
        yield scratch
    finally:
        _clear(scratch, place, but=[_LOCK, REJECTED_FILE])
        if not (scratch / REJECTED_FILE).exists():
            shutil.rmtree(scratch)
        lock.release()


def _clear(scratch: Path, place: Path, *, but: list[str]) -> None:
    replaced = replaced_by(scratch / _STAGED)
    if replaced.exists() and not place.exists():  # a build ended between the two renames of publish
        os.rename(replaced, place)
    for found in scratch.iterdir():
        if found.is_dir():
            shutil.rmtree(found)
        elif found.name not in but:
            found.unlink()


def _made_rows(recipe: Recipe, sources: list[Source], scratch: Path, options: BuildOptions) -> MadeRows:
    """Make pairs from all rows, in worker processes if there are enough rows to be worth starting them.

    Raises:
        UserError: there are no rows.
    """
    chunks = _chunks(recipe.rows(scratch, sources), limit=options.limit)
    first = list(itertools.islice(chunks, _FEWEST_CHUNKS))
    if not first:
        raise UserError("no rows: the sources are empty")
    workers = 1 if len(first) < _FEWEST_CHUNKS else options.workers or len(os.sched_getaffinity(0))
    made = made_in_order(itertools.chain(first, chunks), recipe=recipe, scratch=scratch, workers=workers)
    bar = progress_bar("{task.fields[rows]:,} rows", counted=False, transient=True)
    paths, is_pair, pairs, tally, num_rows = [], [], scratch / "pairs", Tally(), 0
    with closing(made), pairs.open("wb") as out, bar as progress:
        task = progress.add_task("making pairs", total=sum(source.num_bytes for source in sources) or None, rows=0)
        for chunk in made:
            paths.append(chunk.path)
            chunk.pairs.tofile(out)
            is_pair.append(chunk.is_pair)
            tally.add(chunk.tally)
            num_rows += len(chunk.is_pair)
            progress.update(task, completed=sum(source.read_bytes for source in sources), rows=num_rows)
    return MadeRows(paths=paths, is_pair=np.concatenate(is_pair), pairs=np.fromfile(pairs, dtype=PAIR), tally=tally)


def _chunks(rows: Iterator[Row], *, limit: int | None) -> Iterator[list[Row]]:
    """Split the rows by number and size only, so that the chunks are always the same."""
    chunk: list[Row] = []
    size = 0
    for row in itertools.islice(rows, limit):
        chunk.append(row)
        size += len(row.value) if isinstance(row.value, bytes) else 0
        if len(chunk) == CHUNK_ROWS or size >= _CHUNK_BYTES:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk
