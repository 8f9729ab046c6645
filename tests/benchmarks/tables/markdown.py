"""Tables in Markdown."""

from collections.abc import Iterable, Sequence


def table(columns: str, rows: Iterable[Sequence[object]]) -> str:
    """A table with columns named in one string, separated by ``|``; those that end in ``:`` are right-aligned."""
    names = [name.strip() for name in columns.split("|")]
    head = [name.removesuffix(":") for name in names]
    rule = ["---:" if name.endswith(":") else "---" for name in names]
    return "".join(f"| {' | '.join(map(str, line))} |\n" for line in (head, rule, *rows))
