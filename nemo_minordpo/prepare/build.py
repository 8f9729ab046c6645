"""Rows in, a data set of pairs out: in chunks, in several processes, interruptible, written at once.

Rows are cut into chunks in their order; each chunk is made into a part (chunk.py) by a process that has the recipe
open, and lies in `.NAME.parts` beside the output until the last one is there. What comes out depends on rows and
settings alone, neither on the number of processes nor on interruptions. Whole chunks in flight are all that is in
memory; of every pair a few numbers are kept at the end, for the split.
"""

import itertools
import json
import os
import shutil
from collections.abc import Iterator
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from nemo_minordpo.core.chat_template import date_line
from nemo_minordpo.errors import UserError
from nemo_minordpo.files import refuse_existing, write_json
from nemo_minordpo.flat import differences
from nemo_minordpo.prepare.chat import ChatTemplate
from nemo_minordpo.prepare.chunk import Part
from nemo_minordpo.prepare.data_set import OUTPUT_FILES, Finish, write_data_set
from nemo_minordpo.prepare.recipe import Recipe
from nemo_minordpo.prepare.show import report_of, say, show
from nemo_minordpo.prepare.sources import Row, Source
from nemo_minordpo.prepare.workers import Makers
from nemo_minordpo.provenance import code_version
from nemo_minordpo.records import Manifest

CHUNK_ROWS = 1000
_CHUNK_BYTES = 8 << 20
_FEWEST_CHUNKS = 4  # fewer are done before the first process is there


@dataclass(frozen=True, kw_only=True)
class BuildOptions:
    """What holds for a data set as a whole.

    num_validation: pairs to hold out; 0 writes no validation file.
    one_per_question: of the rows of one question keep the first pair only.
    max_rejected: share of the rows above which nothing is written.
    limit: read only the first rows, that many; None reads all.
    workers: processes that make pairs; None = as many as there are cores.
    overwrite: replace what an earlier build left in the output.
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
            raise UserError(f"max_rejected is {self.max_rejected}: it is a share, from 0 to 1")
        for name, value in (("limit", self.limit), ("workers", self.workers)):
            if value is not None and value < 1:
                raise UserError(f"{name} is {value}: it must be 1 or more (leave it out for all)")


def build(recipe: Recipe, sources: list[Source], output: Path, options: BuildOptions) -> Manifest:
    """Write the data set that `recipe` makes of `sources` into the folder `output`, whole or not at all.

    Files: `train.jsonl`, `validation.jsonl` when asked for, `rejected_rows.jsonl` (where, why), `manifest.json`,
    `statistics.json` and `statistics.png`. Every row becomes a pair or a rejected row. An interrupted build goes on
    where it was when the same command is given again.

    Raises:
        ValueError: an output that exists, a file that cannot be read to its end, more rejected rows than
            `max_rejected`, or another process that builds the same output.
    """
    _refuse_foreign(output, overwrite=options.overwrite)
    chat = recipe.prompting.open()  # what is wrong with it is told before anything else
    if chat is not None and chat.advice:
        say(chat.advice)
    place = Path(os.path.realpath(output))
    scratch = place.parent / f".{place.name}.parts"
    with _locked(scratch, output):
        refuse_existing(output, overwrite=options.overwrite)  # another build may just have ended
        inputs = {source.name: source.identity() for source in sources} | recipe.identities()
        recipe, key = _dated(recipe, chat, scratch, _key(recipe, inputs, limit=options.limit))
        settings = recipe.settings() | {"limit": options.limit}
        _forget_others(scratch, key)
        more_counts = recipe.begin(scratch)
        paths, num_rows = _make_parts(recipe, sources, scratch, options)
        manifest = Manifest(
            stage=recipe.stage,
            inputs=inputs,
            settings=settings | _settings(options),
            counts=more_counts,
        )
        staged = scratch / "output"
        finish = Finish(
            num_validation=options.num_validation,
            one_per_question=options.one_per_question,
            max_rejected=options.max_rejected,
        )
        write_data_set(paths, staged, manifest=manifest, finish=finish, num_rows=num_rows, scratch=scratch)
        report = report_of(staged, output, manifest=manifest, paths=paths)
        _publish(staged, place, replaced=scratch / "replaced")
        shutil.rmtree(scratch)
    show(report)
    return manifest


def _settings(options: BuildOptions) -> dict[str, Any]:
    names = ("num_validation", "one_per_question", "max_rejected")
    return {name: value for name, value in asdict(options).items() if name in names}


def _refuse_foreign(output: Path, *, overwrite: bool) -> None:
    """The output is replaced as a whole: it may hold nothing that no build has made."""
    refuse_existing(output, overwrite=overwrite)
    if output.exists() and not output.is_dir():
        raise UserError(f"{output} is a file: name a folder")
    found = [path.name for path in output.iterdir()] if output.exists() else []
    foreign = sorted(set(found) - set(OUTPUT_FILES))
    if foreign:
        raise UserError(
            f"{output} holds what no preparation has made ({', '.join(foreign[:3])}), and would be replaced "
            "as a whole: choose another folder"
        )


@contextmanager
def _locked(scratch: Path, output: Path) -> Iterator[None]:
    scratch.mkdir(parents=True, exist_ok=True)
    lock = FileLock(scratch / "lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise UserError(f"{output}: another process is building it: wait for it, or choose another folder") from None
    try:
        yield
    finally:
        if scratch.exists() and not any(scratch.glob("*.npz")):  # nothing was made that is worth keeping
            shutil.rmtree(scratch)
        lock.release()


def _key(recipe: Recipe, inputs: dict[str, str], *, limit: int | None) -> dict[str, Any]:
    """All that the parts of a build depend on, as JSON has it."""
    key = (
        {"stage": recipe.stage, "code": code_version("prepare")}
        | recipe.settings()
        | {"limit": limit, "inputs": inputs}
    )
    return json.loads(json.dumps(key))


def _dated(
    recipe: Recipe, chat: ChatTemplate | None, scratch: Path, key: dict[str, Any]
) -> tuple[Recipe, dict[str, Any]]:
    """Recipe and key with the date of their prompts, where the chat template shows one.

    It is the day that the user names, or else the day on which this build began.
    """
    if chat is None or chat.date is None:
        return recipe, key
    date, unfinished = chat.date, _unfinished(scratch)
    if key["date"] is None and unfinished is not None and unfinished | {"date": None} == key:
        date = unfinished["date"]
    say(date_line(date))
    return recipe.dated(date), key | {"date": date}


def _unfinished(scratch: Path) -> dict[str, Any] | None:
    """The key of a build that was interrupted; None where there is none."""
    try:
        return json.loads((scratch / "key.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None


def _forget_others(scratch: Path, key: dict[str, Any]) -> None:
    """Take away the parts of a build with other rows or settings, and say so."""
    before = _unfinished(scratch)
    if before != key:
        if before is not None:
            say("\n".join(["an unfinished build of something else is forgotten:", *differences(before, key)]))
        for found in scratch.iterdir():
            if found.name == "replaced":  # the last data set, of a build that ended between two renames
                continue
            if found.is_dir():
                shutil.rmtree(found)
            elif found.name != "lock":
                found.unlink()
        write_json(scratch / "key.json", key)


def _make_parts(recipe: Recipe, sources: list[Source], scratch: Path, options: BuildOptions) -> tuple[list[Path], int]:
    """One part a chunk, those that are there already left as they are. Returns them, and the number of rows."""
    chunks = _chunks(sources, limit=options.limit)
    first = list(itertools.islice(chunks, _FEWEST_CHUNKS))
    workers = options.workers or len(os.sched_getaffinity(0))
    if len(first) < _FEWEST_CHUNKS:
        workers = 1
    paths: list[Path] = []
    num_rows = num_found = 0
    try:
        with _progress() as progress, Makers(recipe, scratch, workers=workers) as makers:
            task = progress.add_task("making pairs", total=sum(source.num_bytes for source in sources) or None, rows=0)
            for number, rows in enumerate(itertools.chain(first, chunks)):
                path = scratch / f"{number:06}.npz"
                paths.append(path)
                num_rows += len(rows)
                if _is_whole(path, len(rows)):
                    num_found += 1
                else:
                    makers.make(path, rows)
                progress.update(task, completed=sum(source.read_bytes for source in sources), rows=num_rows)
    except BrokenProcessPool:
        raise UserError(
            "a worker process ended unexpectedly (out of memory?): start the same command again, perhaps with fewer "
            "--workers; what is made already is kept"
        ) from None
    if num_found:
        say(f"went on with an interrupted build: {num_found} of {len(paths)} chunks were there")
    return paths, num_rows


def _chunks(sources: list[Source], *, limit: int | None) -> Iterator[list[Row]]:
    """Rows cut by number and size, so that the cuts depend on nothing else."""
    chunk: list[Row] = []
    size = 0
    rows = itertools.chain.from_iterable(source.rows() for source in sources)
    for row in itertools.islice(rows, limit):
        chunk.append(row)
        size += len(row.value) if isinstance(row.value, bytes) else 0
        if len(chunk) == CHUNK_ROWS or size >= _CHUNK_BYTES:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def _is_whole(path: Path, num_rows: int) -> bool:
    if not path.exists():
        return False
    try:
        part = Part(path)
        found = len(part.array("is_pair"))
        part.close()
    except ValueError:
        return False
    return found == num_rows


def _progress() -> Progress:
    columns = (
        TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[rows]:,} rows"), TimeElapsedColumn(),
        TimeRemainingColumn(),
    )  # fmt: skip
    return Progress(*columns, console=Console(stderr=True), transient=True)


def _publish(staged: Path, output: Path, *, replaced: Path) -> None:
    """Rename `staged` to `output`; a folder that is there is moved away first and goes with the scratch folder."""
    if replaced.exists():
        shutil.rmtree(replaced)
    if output.exists():
        os.rename(output, replaced)
    os.rename(staged, output)
