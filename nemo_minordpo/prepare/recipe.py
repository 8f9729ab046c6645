"""What a kind of data set brings along to be built: how one of its rows becomes a pair."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nemo_minordpo.prepare.chat import Prompting
from nemo_minordpo.records import PreferencePair, sha256_of_file


@dataclass(frozen=True, kw_only=True)
class Made:
    """A pair, and what is known about it beyond its own line."""

    pair: PreferencePair
    question: str  # all rows of one question stay on one side of the split
    origin: dict[str, str] = field(default_factory=dict)  # further keys of the line, from which the row is found again
    note: str = ""  # a peculiarity, counted in the manifest
    doubt: str = ""  # why the row would have been rejected had the user not asked to keep it; counts as rejected, too
    before: str = ""  # the prompt as it was, for the samples that are shown


# (fields of the row, its place, its number) -> pair; a ValueError is a rejection, "reason: detail".
MakePair = Callable[[dict[str, Any], str, int], Made]


@dataclass(frozen=True, kw_only=True)
class Recipe(ABC):
    """One kind of data set; picklable, opened once in every process.

    seed: of everything that is drawn, the split included.
    prompting: how prompts are written.
    """

    seed: int = 1234
    prompting: Prompting = field(default_factory=Prompting)

    stage = "prepare"

    def settings(self) -> dict[str, Any]:
        """All that a pair depends on besides its row, by the names of the options."""
        return self.prompting.settings() | {"seed": self.seed}

    def identities(self) -> dict[str, str]:
        """Name and digest of everything that is read besides the rows."""
        return {str(path): sha256_of_file(path) for path in self.prompting.input_files()}

    def begin(self, scratch: Path) -> dict[str, int]:
        """What has to be made in `scratch` before the first row, once; returns counts for the manifest."""
        return {}

    @abstractmethod
    def open(self, scratch: Path) -> MakePair:
        """The function that makes a pair, with all it needs loaded."""


def reason_kind(reason: str) -> str:
    """The part of a reason that rows share: "missing column: 'x'" -> "missing column"."""
    return reason.split(": ", 1)[0].split(" (", 1)[0][:100]
