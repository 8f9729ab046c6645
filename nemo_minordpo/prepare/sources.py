"""Find sources of rows: files, globs, folders, names on the Hugging Face hub."""

import glob
import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemo_minordpo.errors import UserError, one_line
from nemo_minordpo.hub import is_hub_name
from nemo_minordpo.prepare.rows import LocalFile, Row

SUFFIXES = (".jsonl", ".ndjson", ".json", ".jsonl.gz", ".ndjson.gz", ".json.gz", ".parquet")
_SPLIT_WORDS = ("train", "training", "test", "validation", "valid", "val", "dev", "eval", "evaluation")


@dataclass
class HubSet:
    """A data set on the Hugging Face hub (or a folder laid out like one), streamed through `datasets`."""

    name: str
    subset: str | None
    split: str
    num_bytes: int = 0  # unknown
    read_bytes: int = 0

    def identity(self) -> str:
        """Digest of the files that the name refers to today: their addresses include the revision."""
        builder = self._builder()
        files = builder.config.data_files
        addresses = {str(split): list(map(str, found)) for split, found in (files or {}).items()}
        return hashlib.sha256(json.dumps([builder.hash, self.split, addresses]).encode()).hexdigest()

    def rows(self) -> Iterator[Row]:
        number = 0
        name = f"{self.name}:{self.split}"
        try:
            for value in self._builder().as_streaming_dataset(split=self.split):
                number += 1
                yield Row(name, number, value)
        except Exception as error:  # from the network, the file system or the format
            raise UserError(f"{name}: cannot be read after row {number}: {one_line(error)}") from error

    def _builder(self) -> Any:
        import datasets

        try:
            return datasets.load_dataset_builder(self.name, self.subset)
        except Exception as error:  # not found, no network, a script instead of files, ...
            raise UserError(
                f"{self.name}: no such file or folder here, and no data set on the hub: {one_line(error)}"
            ) from error


Source = LocalFile | HubSet


def find_sources(names: Iterable[str | Path], *, subset: str | None = None, split: str = "train") -> list[Source]:
    """The sources that files, globs, folders and hub names refer to, in order, each once.

    A folder refers to the files of rows below it; if their names distinguish splits, to those of `split`.
    `owner/name` is looked up on the hub if there is no such file.

    Raises:
        UserError: a name refers to nothing, or to a file without rows.
    """
    found: dict[str, Source] = {}
    for name in map(str, names):
        if is_hub_name(name) and not name.endswith(SUFFIXES):
            found[name] = HubSet(name, subset, split)
            continue
        for path in _files(name, split=split):
            found[str(path.resolve())] = LocalFile(path)
    if not found:
        raise UserError("no source given: name files, folders, or a data set on the hub")
    return list(found.values())


def _files(name: str, *, split: str) -> list[Path]:
    path = Path(name)
    if path.is_dir():
        return _files_below(path, split=split)
    paths = [path] if path.exists() else [Path(match) for match in sorted(glob.glob(name, recursive=True))]
    if not paths:
        raise UserError(f"{name}: no such file")
    for one in paths:
        if not one.is_file() or not one.name.endswith(SUFFIXES):
            raise UserError(f"{one}: not a file of rows: the name must end with {', '.join(SUFFIXES)}")
    return paths


def _files_below(folder: Path, *, split: str) -> list[Path]:
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name.endswith(SUFFIXES)]
    paths = [path for path in paths if not any(part.startswith(".") for part in path.relative_to(folder).parts)]
    # A data set's description may be a .json file next to its rows.
    paths = [path for path in paths if ".json" not in path.suffixes] or paths
    of_split = [path for path in paths if _names_split(path.relative_to(folder), split)]
    if not paths:
        raise UserError(f"{folder}: no file of rows in this folder ({', '.join(SUFFIXES)})")
    if not of_split and any(_names_split(path.relative_to(folder), word) for path in paths for word in _SPLIT_WORDS):
        raise UserError(f"{folder}: no file for the split {split!r}: found {', '.join(str(path) for path in paths)}")
    return of_split or paths


def _names_split(path: Path, split: str) -> bool:
    """Whether a path contains the name of a split, as a word or between underscores."""
    return re.search(rf"(?<![a-z0-9]){re.escape(split.lower())}(?![a-z0-9])", str(path).lower()) is not None
