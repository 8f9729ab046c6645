"""Write files and folders atomically, and other common file operations.

A file is written under a temporary name in its folder, synced to disk, and renamed; a folder is built next to its final
location and renamed.
"""

import hashlib
import json
import os
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, Any

from nemo_minordpo.errors import UserError


@contextmanager
def whole_file(path: Path, mode: str = "w") -> Iterator[IO[Any]]:
    """An open file that replaces ``path`` when the block ends; an exception leaves ``path`` unchanged.

    Args:
        path: missing parent folders are created.
        mode: "w" for UTF-8 text, or "wb".
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")  # process ids are not unique across nodes
    try:
        with temporary.open(mode, encoding=None if "b" in mode else "utf-8") as out:
            yield out
            out.flush()
            os.fsync(out.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def staging_folder(output: Path) -> Iterator[Path]:
    """A temporary folder on the file system of `output`, removed at the end with anything left in it."""
    output.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=output.parent, prefix=f".{output.name}.") as folder:
        yield Path(folder)


def publish(staged: Path, output: Path) -> None:
    """Rename `staged` (a file or folder) to `output`, replacing it.

    A folder cannot be replaced in one step: the old one first moves to :func:`replaced_by` and is removed with the
    staging folder.
    """
    if output.is_dir():
        os.rename(output, replaced_by(staged))
    elif output.exists() and staged.is_dir():
        output.unlink()
    os.rename(staged, output)


def replaced_by(staged: Path) -> Path:
    """Where :func:`publish` moves the folder that `staged` replaces."""
    return staged.with_name(f"{staged.name}.replaced")


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON atomically."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_jsonl(path: Path, rows: Iterable[Any]) -> int:
    """Write one JSON object per line atomically; rows may be dataclasses. Return the number of rows."""
    count = 0
    with whole_file(path) as out:
        for row in rows:
            out.write(to_json_line(row))
            count += 1
    return count


def to_json_line(row: Any) -> str:
    """A record or a plain value as one line of JSON."""
    value = row if isinstance(row, dict | list) else asdict(row)
    return json.dumps(value, ensure_ascii=False) + "\n"


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with whole_file(path) as out:
        out.write(text)


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """(line number from 1, text) of every line that is not blank.

    Raises:
        UserError: the file is missing or not UTF-8.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    number = 0
    try:
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield number, line
    except UnicodeDecodeError as error:
        raise UserError(f"{path}:{number + 1}: not UTF-8 text ({error})") from error


def sha256_of_file(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as data:  # hashlib.file_digest needs Python 3.11
        while block := data.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def refuse_existing(path: Path, *, overwrite: bool) -> None:
    """Protect the user's files: replace an existing output only on request.

    Raises:
        UserError: `path` exists (and is not an empty folder) and `overwrite` is False.
    """
    exists = any(path.iterdir()) if path.is_dir() else path.exists()
    if exists and not overwrite:
        raise UserError(f"{path} exists already: choose another path, or pass --overwrite to replace it")
