"""The interface of a recipe: how a row of one kind of data set becomes a pair."""

import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

from nemo_minordpo import DEFAULT_SEED
from nemo_minordpo.files import sha256_of_file
from nemo_minordpo.prepare.chat import Prompting
from nemo_minordpo.prepare.rows import Row
from nemo_minordpo.prepare.sources import Source
from nemo_minordpo.prepare.tracked_row import TrackedRow
from nemo_minordpo.records import PreferencePair


@dataclass(frozen=True, kw_only=True)
class Made:
    """A pair, and what is known about it beyond its jsonl line."""

    pair: PreferencePair
    question: str  # all rows of a question stay on one side of the split
    origin: dict[str, str] = field(default_factory=dict)  # extra keys of the line, which identify the row
    # Anything unusual, or "": the first line is counted in the manifest, the other lines show this pair's case.
    notes: tuple[str, ...] = ()
    doubt: str = ""  # why the row would be rejected unless the user keeps it; counts towards --max-rejected
    before: str = ""  # the original prompt, for the samples that are shown


# (row, place, number) -> pair; a UserError rejects the row with its message, "reason: detail".
MakePair = Callable[[TrackedRow, str, int], Made]


@dataclass(frozen=True, kw_only=True)
class Recipe(ABC):
    """One kind of data set; picklable, and opened once per process.

    seed: seed of all random choices, including the split.
    prompting: how prompts are written.
    ignore_columns: columns of the rows, and keys of their messages, to leave unread.
    """

    seed: int = DEFAULT_SEED
    prompting: Prompting = field(default_factory=Prompting)
    ignore_columns: Sequence[str] = ()

    stage: ClassVar[str] = "prepare"
    # reasons for which a row gives no pair though nothing is wrong with it; not counted towards --max-rejected
    no_fault: ClassVar[Sequence[str]] = ()

    def settings(self) -> dict[str, Any]:
        """Everything besides its row that a pair depends on, by option name."""
        return self.prompting.settings() | {"seed": self.seed, "ignore_columns": list(self.ignore_columns)}

    def dated(self, date: str) -> "Recipe":
        """A copy whose prompts have this date."""
        return replace(self, prompting=self.prompting.dated(date))

    def identities(self) -> dict[str, str]:
        """Names and digests of all inputs other than the rows."""
        return {str(path): sha256_of_file(path) for path in self.prompting.input_files()}

    def begin(self, scratch: Path, sources: Sequence[Source]) -> dict[str, int]:
        """Write files that are needed before the first row to `scratch`; returns counts for the manifest."""
        return {}

    def rows(self, scratch: Path, sources: Sequence[Source]) -> Iterator[Row]:
        """The rows to make pairs from, in an order that does not change; by default those of the sources."""
        return itertools.chain.from_iterable(source.rows() for source in sources)

    @abstractmethod
    def open(self, scratch: Path) -> MakePair:
        """Load everything needed, and return the function that makes a pair."""


def reason_kind(reason: str) -> str:
    """The part of a reason that is the same for many rows: "missing column: 'x'" -> "missing column"."""
    return reason.split(": ", 1)[0].split(" (", 1)[0][:100]
