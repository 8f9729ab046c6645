"""Files of pairs in parts of whole lines, so that several processes can read them and none holds a file."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from nemo_minordpo.errors import UserError
from nemo_minordpo.records import PreferencePair

_PART = 4 << 20  # bytes; a longer line is a part of its own


@dataclass(frozen=True, kw_only=True)
class Part:
    """Consecutive lines of a file.

    file: place of the file among those given.
    start, size: bytes.
    first_line: number of its first line, from 1.
    """

    file: int
    path: Path
    start: int
    size: int
    first_line: int

    def lines(self) -> Iterator[tuple[int, int, bytes]]:
        """(number, offset in bytes, line with its line break) of every line that is not blank."""
        with self.path.open("rb") as data:
            data.seek(self.start)
            offset, number = self.start, self.first_line
            while offset < self.start + self.size:
                line = data.readline()
                if line.strip():
                    yield number, offset, line
                offset, number = offset + len(line), number + 1


def parts_of(files: Sequence[Path], *, size: int = _PART) -> list[Part]:
    """The files in parts of about `size` bytes, in order."""
    parts = []
    for place, path in enumerate(files):
        with path.open("rb") as data:
            start, first_line = 0, 1
            while block := data.read(size):
                block += data.readline()
                parts.append(Part(file=place, path=path, start=start, size=len(block), first_line=first_line))
                start, first_line = start + len(block), first_line + block.count(b"\n")
    return parts


def read_pair(line: bytes) -> PreferencePair:
    """Raises UserError with the reason if the line is not a pair."""
    try:
        return PreferencePair.from_json(line.decode())
    except UnicodeDecodeError as error:
        raise UserError(f"not UTF-8 text ({error})") from error


def pair_at(path: Path, offset: int) -> PreferencePair:
    """The pair on the line that starts at `offset` bytes."""
    with path.open("rb") as data:
        data.seek(offset)
        return read_pair(data.readline())
