"""Messages and progress bars, on stderr: stdout is reserved for a command's output."""

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
    """Print a line as is: not wrapped, and not coloured unless a style is given."""
    Console(stderr=True).print(line, style=style, highlight=False, markup=False, soft_wrap=True)


def progress_bar(*more: str, counted: bool = True, console: Console | None = None, **options: Any) -> Progress:
    """A progress bar with elapsed and remaining time; if stderr is not a terminal, only its final state is printed.

    Args:
        more: text columns after the bar, in rich's syntax, for example "{task.fields[state]}".
        counted: show "3/10"; False = show a percentage, e.g. for bytes.
        console: console to draw on; None = stderr.
        options: passed to rich's Progress, for example transient (the bar disappears when done, and prints nothing
            without a terminal) and disable (on all ranks but the first).
    """
    columns = (
        "{task.description}", BarColumn(), MofNCompleteColumn() if counted else TaskProgressColumn(),
        TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(), *more,
    )  # fmt: skip
    return Progress(*columns, console=console or Console(stderr=True), **options)
