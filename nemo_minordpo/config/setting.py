"""How a setting is declared: its default, together with everything that other code needs to know about it.

The declarations drive range checks (ranges.py), types and suggestions for misspelt names (keys.py), the identity of a
run (loading.py), the key of the reference cache, the report's axes, and docs/settings.md (page.py).
"""

from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

_METADATA = "setting"


class Resume(Enum):
    """Whether a setting may differ when a run is resumed, i.e. is not part of the run's identity."""

    SAME = "no"
    SAME_CONTENTS = "the path, not the contents"
    FREE = "yes"


@dataclass(frozen=True, kw_only=True)
class Setting:
    """The declaration of a setting, apart from its name, type and default.

    help: what it means.
    unit: unit of the value, for messages and docs/settings.md.
    minimum, above, below: range (>=, >, <) of a number, or of each number in a list.
    choices: allowed values, or allowed items of a list.
    own: a form allowed in addition to the choices, in words.
    is_mix: a mapping of choices to weights is allowed too.
    length: number of items in a list.
    nonempty: what a list must contain at least one of.
    is_duration: the format is DD:HH:MM:SS; the range is in seconds.
    special: values, null included, with a special meaning; they may lie outside the range.
    why: reason for the range.
    losses: the losses that read it; empty = all.
    resume: whether it may change when a run is resumed.
    reference: the reference's log-probabilities depend on it.
    is_variant: a value other than the default makes it another loss: the report names it.
    axis: an axis of the report; runs that differ in another setting get different names there.
    short: its name in run names and messages; None = the last part of its key.
    aliases: its names in other trainers, in lower case.
    """

    help: str
    unit: str = ""
    minimum: float | None = None
    above: float | None = None
    below: float | None = None
    choices: tuple[Any, ...] = ()
    own: str = ""
    is_mix: bool = False
    length: int | None = None
    nonempty: str = ""
    is_duration: bool = False
    special: Mapping[Any, str] = field(default_factory=dict)
    why: str = ""
    losses: tuple[str, ...] = ()
    resume: Resume = Resume.SAME
    reference: bool = False
    is_variant: bool = False
    axis: bool = False
    short: str | None = None
    aliases: tuple[str, ...] = ()

    @property
    def range_in_words(self) -> str:
        """`in [0, 1)`, `in (0, 1)`, `>= 1`, `> 0`; empty if every number is allowed."""
        if self.below is not None:
            return f"in ({self.above}, {self.below})" if self.minimum is None else f"in [{self.minimum}, {self.below})"
        if self.minimum is not None:
            return f">= {self.minimum}"
        return f"> {self.above}" if self.above is not None else ""

    def allows(self, number: float) -> bool:
        """Whether a number is in the range; NaN is in no bounded range."""
        return (
            (self.minimum is None or number >= self.minimum)
            and (self.above is None or number > self.above)
            and (self.below is None or number < self.below)
        )


def setting(default: Any, help: str, **declared: Any) -> Any:
    """A field of a section; `declared` are the fields of :class:`Setting`."""
    metadata = {_METADATA: Setting(help=help, **declared)}
    if isinstance(default, list | dict):
        return field(default_factory=lambda: copy(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def setting_of(item: Any) -> Setting:
    """The declaration of a field made by :func:`setting`."""
    return item.metadata[_METADATA]
