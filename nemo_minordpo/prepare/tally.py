"""What a build counts of its rows, each count with its first example."""

from collections import Counter
from dataclasses import dataclass, field, fields
from typing import Any

SAMPLES = 5  # prompts that are shown; more are held of every chunk, from which these are chosen


class Counts(dict[str, tuple[int, Any]]):
    """name -> (how many, the first example)."""

    def count(self, name: str, example: Any, number: int = 1) -> None:
        before, first = self.get(name, (0, example))
        self[name] = before + number, first

    def numbers(self) -> Counter[str]:
        """The counts alone, in the order in which their names came."""
        return Counter({name: number for name, (number, _) in self.items()})


@dataclass
class Tally:
    """Of some rows; tallies of rows that follow are added to it.

    rejected: kind of reason -> rows without a pair, "place: reason".
    doubted: kind of reason -> pairs that are kept though they should be rejected, "place: reason".
    notes: note -> pairs, [place, lines ...].
    unread: what rows hold and their pairs do not -> rows, place.
    lost: those of them that carry meaning -> rows, place.
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
