"""What README.md and the pages of docs/ show: commands in fenced blocks, and names and commands in code spans."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[3]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
# What stands for something of the reader's own.
PLACEHOLDERS = {"...", "KEY=VALUE", "NAME", "ARGS...", "RUNS", "LIMIT", "OUTPUT", "HF", "QUESTIONS", "RUN", "COMMAND"}
_FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^ *```$", re.DOTALL | re.MULTILINE)
_SPAN = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
_COMMAND = re.compile(r"(minordpo|make|python3? -m|sbatch|torchrun|pip|launchers/\w+\.sh)( |$)")


@dataclass(frozen=True)
class Shown:
    """A text of a page, and where it is."""

    place: str
    text: str


def blocks(path: Path, language: str) -> Iterator[Shown]:
    """Fenced blocks of a language; the empty one is the shell."""
    text = path.read_text(encoding="utf-8")
    for found in _FENCE.finditer(text):
        if found[2] == language:
            line = text.count("\n", 0, found.start()) + 1
            yield Shown(f"{path.relative_to(ROOT)}:{line}", re.sub(f"^{found[1]}", "", found[3], flags=re.MULTILINE))


def spans(path: Path) -> Iterator[Shown]:
    """Code spans, one each."""
    text = _FENCE.sub(lambda block: "\n" * block[0].count("\n"), path.read_text(encoding="utf-8"))
    for number, line in enumerate(text.splitlines(), start=1):
        for span in _SPAN.findall(line):
            yield Shown(f"{path.relative_to(ROOT)}:{number}", span)


def commands(path: Path) -> Iterator[Shown]:
    """Command lines, of shell blocks and of spans that are one."""
    for block in blocks(path, ""):
        for line in block.text.replace("\\\n", " ").splitlines():
            if shlex.split(line, comments=True):
                yield Shown(block.place, line)
    yield from (span for span in spans(path) if _COMMAND.match(span.text))


def words_of(command: str) -> list[str]:
    """The words of a command line, without comment and placeholders."""
    return [word for word in shlex.split(command, comments=True) if word not in PLACEHOLDERS]
