"""What a kind of data set brings along to be built: how one of its rows becomes a pair."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from nemo_minordpo.files import sha256_of_file
from nemo_minordpo.prepare.chat import Prompting
from nemo_minordpo.prepare.tracked_row import TrackedRow
from nemo_minordpo.records import PreferencePair


@dataclass(frozen=True, kw_only=True)
class Made:
    """A pair, and what is known about it beyond its own line."""

    pair: PreferencePair
    question: str  # all rows of one question stay on one side of the split
    origin: dict[str, str] = field(default_factory=dict)  # further keys of the line, from which the row is found again
    # Peculiarities, or "": counted in the manifest by their first lines; the others are what this pair has of them.
    notes: tuple[str, ...] = ()
    doubt: str = ""  # why the row would have been rejected had the user not asked to keep it; counts as rejected, too
    before: str = ""  # the prompt as it was, for the samples that are shown


# (the row, its place, its number) -> pair; a UserError is a rejection, "reason: detail".
MakePair = Callable[[TrackedRow, str, int], Made]


@dataclass(frozen=True, kw_only=True)
class Recipe(ABC):
    """One kind of data set; picklable, opened once in every process.

    seed: of everything that is drawn, the split included.
    prompting: how prompts are written.
    ignore_columns: columns of the rows, and keys of their messages, that are not read.
    """

    seed: int = 1234
    prompting: Prompting = field(default_factory=Prompting)
    ignore_columns: Sequence[str] = ()

    stage = "prepare"

    def settings(self) -> dict[str, Any]:
        """All that a pair depends on besides its row, by the names of the options."""
        return self.prompting.settings() | {"seed": self.seed, "ignore_columns": list(self.ignore_columns)}

    def dated(self, date: str) -> "Recipe":
        """The same with prompts of this day."""
        return replace(self, prompting=self.prompting.dated(date))

    def identities(self) -> dict[str, str]:
        """Name and digest of everything that is read besides the rows."""
        return {str(path): sha256_of_file(path) for path in self.prompting.input_files()}

    def begin(self, scratch: Path) -> dict[str, int]:
        """Make in `scratch` what has to be there before the first row; returns counts for the manifest."""
        return {}

    @abstractmethod
    def open(self, scratch: Path) -> MakePair:
        """The function that makes a pair, with all it needs loaded."""


def reason_kind(reason: str) -> str:
    """The part of a reason that rows share: "missing column: 'x'" -> "missing column"."""
    return reason.split(": ", 1)[0].split(" (", 1)[0][:100]
