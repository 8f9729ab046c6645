"""How a setting is declared: its default, and beside it everything that other code has to know of it.

From the declarations follow the checks of ranges (ranges.py), types and nearest names (keys.py), what belongs to the
identity of a run (loading.py), the key of the reference cache, the report's axes, and docs/settings.md (page.py).
"""

from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

_METADATA = "setting"


class Resume(Enum):
    """Whether a setting may differ when a run is resumed: whether it belongs to the identity of the run."""

    SAME = "no"
    SAME_CONTENTS = "the path, not the contents"
    FREE = "yes"


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What is declared beside a setting's name, type and default.

    help: what it means.
    unit: of the value, for messages and the page.
    minimum, above, below: range of a number (>=, >, <), or of each number of a list.
    choices: what the value, or each item of a list, may be.
    own: a form that is allowed beside the choices, in words.
    length: items that a list has.
    nonempty: what a list must have at least one of.
    is_duration: DD:HH:MM:SS; the range is in seconds.
    special: values with a meaning of their own, null included, whether the range has them or not.
    why: of the range.
    losses: which read it; empty = all.
    resume: whether it may change when a run is resumed.
    reference: the reference's log-probabilities depend on it.
    axis: runs that differ in it are compared with one another; all other settings name them apart.
    short: what runs and messages call it; None = its last name.
    aliases: its names in other trainers, in lower case.
    """

    help: str
    unit: str = ""
    minimum: float | None = None
    above: float | None = None
    below: float | None = None
    choices: tuple[Any, ...] = ()
    own: str = ""
    length: int | None = None
    nonempty: str = ""
    is_duration: bool = False
    special: Mapping[Any, str] = field(default_factory=dict)
    why: str = ""
    losses: tuple[str, ...] = ()
    resume: Resume = Resume.SAME
    reference: bool = False
    axis: bool = False
    short: str | None = None
    aliases: tuple[str, ...] = ()

    @property
    def range_in_words(self) -> str:
        """`in [0, 1)`, `>= 1`, `> 0`; empty: every number is allowed."""
        if self.minimum is not None and self.below is not None:
            return f"in [{self.minimum}, {self.below})"
        if self.minimum is not None:
            return f">= {self.minimum}"
        return f"> {self.above}" if self.above is not None else ""

    def allows(self, number: float) -> bool:
        """Whether a number is in the range; NaN is in none that has an end."""
        return (
            (self.minimum is None or number >= self.minimum)
            and (self.above is None or number > self.above)
            and (self.below is None or number < self.below)
        )


def setting(default: Any, help: str, **declared: Any) -> Any:
    """A field of a section; `declared` are those of :class:`Setting`."""
    metadata = {_METADATA: Setting(help=help, **declared)}
    if isinstance(default, list | dict):
        return field(default_factory=lambda: copy(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def setting_of(item: Any) -> Setting:
    """Of a field that :func:`setting` made."""
    return item.metadata[_METADATA]
