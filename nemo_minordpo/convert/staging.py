"""Outputs that appear whole or not at all: built beside their final place, then renamed."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from nemo_minordpo.errors import UserError


@contextmanager
def staging_folder(output: Path) -> Iterator[Path]:
    """A temporary folder on the file system of `output`, removed at the end with whatever was left in it."""
    output.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=output.parent, prefix=f".{output.name}.") as folder:
        yield Path(folder)


def publish(staged: Path, output: Path) -> None:
    """Rename `staged` (a file or folder) to `output`, taking the place of what is there.

    A folder cannot be replaced in one step: the old one is moved into the staging folder first and goes with it.
    """
    if output.is_dir():
        os.rename(output, staged.with_name(f"{staged.name}.replaced"))
    elif output.exists() and staged.is_dir():
        output.unlink()
    os.replace(staged, output)


def require_room(folder: Path, *, num_bytes: int) -> None:
    """Raise ValueError when the file system of `folder`, or of the nearest parent that exists, has less free."""
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if free < num_bytes:
        raise UserError(f"{folder}: {free / 1e9:.1f} GB free, {num_bytes / 1e9:.1f} GB needed")


def note(line: str) -> None:
    """For people, on stderr."""
    Console(stderr=True, highlight=False, soft_wrap=True).print(line, markup=False)


def progress_bar() -> Progress:
    """Counted progress with elapsed and remaining time, on stderr."""
    columns = BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn()
    return Progress(TextColumn("{task.description}"), *columns, console=Console(stderr=True))
