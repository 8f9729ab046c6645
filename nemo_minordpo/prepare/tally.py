"""Counts over the rows of a build, each with its first example."""

from collections import Counter
from dataclasses import dataclass, field, fields
from typing import Any

SAMPLES = 5  # prompts shown, chosen from the samples of all chunks


class Counts(dict[str, tuple[int, Any]]):
    """name -> (how many, the first example)."""

    def count(self, name: str, example: Any, number: int = 1) -> None:
        before, first = self.get(name, (0, example))
        self[name] = before + number, first

    def numbers(self) -> Counter[str]:
        """The counts without examples, in the order of first occurrence."""
        return Counter({name: number for name, (number, _) in self.items()})


@dataclass
class Tally:
    """Counts over consecutive rows; the tally of the following rows is added to it.

    rejected: kind of reason -> number of rows without a pair, "place: reason".
    doubted: kind of reason -> number of pairs kept on request although they would be rejected, "place: reason".
    notes: note -> number of pairs, [place, lines ...].
    unread: column or key that rows have and their pairs do not -> number of rows, place.
    lost: those that carry meaning -> number of rows, place.
    samples: prompts before and after.
    """

    rejected: Counts = field(default_factory=Counts)
    doubted: Counts = field(default_factory=Counts)
    notes: Counts = field(default_factory=Counts)
    unread: Counts = field(default_factory=Counts)
    lost: Counts = field(default_factory=Counts)
    samples: list[tuple[str, str]] = field(default_factory=list)

    def add(self, later: "Tally") -> None:
        for one in fields(self):
            mine, others = getattr(self, one.name), getattr(later, one.name)
            if isinstance(mine, Counts):
                for name, (number, example) in others.items():
                    mine.count(name, example, number)
        self.samples += later.samples
