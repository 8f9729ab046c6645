"""What people see of a command while it works: on stderr, so that its output stays its own."""

from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


def say(line: str, *, style: str | None = None) -> None:
    """A line as it is, neither wrapped nor coloured unless a style is given."""
    Console(stderr=True).print(line, style=style, highlight=False, markup=False, soft_wrap=True)


def progress_bar(*more: str, counted: bool = True, console: Console | None = None, **options: Any) -> Progress:
    """A progress bar with elapsed and remaining time; where stderr is no terminal, its last state alone is printed.

    Args:
        more: texts behind it, in rich's syntax, such as "{task.fields[state]}".
        counted: show "3/10"; False: a percentage, of bytes and what else nobody counts.
        console: what to draw on; None = one of stderr.
        options: of rich's Progress, such as transient (nothing is left of it, and nothing is printed where there is no
            terminal) and disable (for all ranks but the first).
    """
    columns = (
        "{task.description}", BarColumn(), MofNCompleteColumn() if counted else TaskProgressColumn(),
        TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(), *more,
    )  # fmt: skip
    return Progress(*columns, console=console or Console(stderr=True), **options)
