"""Read the rows of a file, each with its place: jsonl, json, gzip, parquet.

A row that cannot be read is returned with the reason, so that it is counted. If the rest of a file cannot be read, the
number of lost rows is unknown, so reading stops with an error that names the file and the place.
"""

import gzip
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, NamedTuple

from nemo_minordpo.errors import UserError
from nemo_minordpo.files import sha256_of_file
from nemo_minordpo.prepare.json_text import GrowingText

# A longer line is not a row of text but a file without line ends; the rest of the line is skipped.
MAX_LINE_BYTES = 16 << 20
_BATCH_ROWS = 256  # parquet rows converted to Python objects at a time


class Row(NamedTuple):
    """One row as found; `number` is its line or row, from 1."""

    source: str
    number: int
    value: bytes | dict[str, Any] | None  # a line of JSON, or a decoded object
    fault: str = ""  # why it could not be read

    @property
    def place(self) -> str:
        return f"{self.source}:{self.number}"

    def fields(self) -> dict[str, Any]:
        """The row as an object.

        Raises:
            UserError: the row is not an object; the message says why, without the place.
        """
        if self.fault:
            raise UserError(self.fault)
        value = _decoded(self.value) if isinstance(self.value, bytes) else self.value
        if not isinstance(value, dict):
            raise UserError(f"a JSON object was expected: found {type(value).__name__}")
        return value


@dataclass
class LocalFile:
    """A file of rows; `read_bytes` is the progress of reading."""

    path: Path
    read_bytes: int = field(default=0, compare=False)

    @property
    def name(self) -> str:
        return str(self.path)

    @property
    def num_bytes(self) -> int:
        return self.path.stat().st_size

    def identity(self) -> str:
        """The file's digest. Raises UserError if the file cannot be read."""
        try:
            return sha256_of_file(self.path)
        except OSError as error:
            raise UserError(f"{self.path}: cannot be read: {error}") from error

    def rows(self) -> Iterator[Row]:
        """The rows in file order; blank lines are skipped.

        Raises:
            UserError: the file is damaged; the message names the last readable row.
        """
        self.read_bytes = number = 0
        try:
            for row in self._rows():
                number = row.number
                yield row
        except (EOFError, zlib.error, OSError) as error:  # from gzip or the disk; parquet errors are reported below
            raise UserError(
                f"{self.path}: damaged after row {number}, nothing after it can be read: {error}"
            ) from error
        self.read_bytes = self.num_bytes

    def _rows(self) -> Iterator[Row]:
        if self.path.suffix == ".parquet":
            yield from self._parquet_rows()
            return
        with self.path.open("rb") as raw, _unpacked(self.path, raw) as data:
            beginning = data.read(4096)
            if beginning.startswith((b"\xff\xfe", b"\xfe\xff")):
                raise UserError(f"{self.path}: UTF-16 text: convert it to UTF-8 (iconv -f UTF-16 -t UTF-8)")
            data.seek(0)
            rows = self._lines(raw, data)
            if ".json" in self.path.suffixes:
                start = beginning.removeprefix(b"\xef\xbb\xbf").lstrip()
                if start.startswith(b"["):
                    rows = self._elements(raw, data)
                elif start.split(b"\n", 1)[0].strip() == b"{":
                    raise UserError(
                        f"{self.path}: a JSON object over several lines: expected an array, or one row per line"
                    )
            yield from rows

    def _lines(self, raw: IO[bytes], data: IO[bytes]) -> Iterator[Row]:
        name, number = self.name, 0
        while line := data.readline(MAX_LINE_BYTES):
            number += 1
            self.read_bytes = raw.tell()
            if len(line) == MAX_LINE_BYTES and not line.endswith(b"\n"):
                while (rest := data.readline(MAX_LINE_BYTES)) and not rest.endswith(b"\n"):
                    pass
                yield Row(name, number, None, f"line too long: more than {MAX_LINE_BYTES >> 20} MiB")
                continue
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")
            if line.strip():
                yield Row(name, number, line)

    def _elements(self, raw: IO[bytes], data: IO[bytes]) -> Iterator[Row]:
        """The elements of one JSON array, decoded one by one as the text is read."""
        text = GrowingText(data, name=self.name, max_characters=MAX_LINE_BYTES)
        text.take("[")
        number = 0
        while not text.take("]"):
            if number and not text.take(","):
                raise UserError(f"{self.path}: damaged after row {number}: neither ',' nor ']' follows")
            number += 1
            value = text.take_value(number)
            self.read_bytes = raw.tell()
            yield Row(self.name, number, value if isinstance(value, dict) else json.dumps(value).encode())
        if not text.is_at_end():
            raise UserError(f"{self.path}: more text after the array of {number} rows")

    def _parquet_rows(self) -> Iterator[Row]:
        import pyarrow
        from pyarrow import parquet

        name, number, size = self.name, 0, self.num_bytes
        try:
            with parquet.ParquetFile(self.path) as file:
                for batch in file.iter_batches(_BATCH_ROWS):
                    for value, fault in _batch_values(batch):
                        number += 1
                        yield Row(name, number, value, fault)
                    self.read_bytes = size * number // max(1, file.metadata.num_rows)
                if number != file.metadata.num_rows:
                    raise UserError(f"{self.path}: found {number} rows, but its metadata says {file.metadata.num_rows}")
        except pyarrow.ArrowException as error:
            raise UserError(f"{self.path}: damaged parquet after row {number}: {error}") from error


def _unpacked(path: Path, raw: IO[bytes]) -> Any:
    return gzip.GzipFile(fileobj=raw) if path.suffix == ".gz" else raw


def _decoded(line: bytes) -> Any:
    try:
        return json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise UserError(f"not UTF-8 text: {error}") from error
    except RecursionError as error:
        raise UserError("nested too deeply") from error
    except ValueError as error:  # JSONDecodeError, or integers with thousands of digits
        raise UserError(f"invalid JSON: {error}") from error


def _batch_values(batch: Any) -> Iterator[tuple[dict[str, Any] | None, str]]:
    try:
        values = batch.to_pylist()
    except (ValueError, OverflowError):  # text that is not UTF-8, or dates that Python lacks: decode row by row
        values = None
    if values is not None:
        yield from ((value, "") for value in values)
        return
    for number in range(batch.num_rows):
        try:
            (value,) = batch.slice(number, 1).to_pylist()
        except (ValueError, OverflowError) as error:
            yield None, f"a value cannot be decoded: {error}"
        else:
            yield value, ""
