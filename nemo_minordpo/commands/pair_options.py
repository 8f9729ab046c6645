"""The options that all commands share which make pairs of rows: declared once, and added by a decorator."""

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from nemo_minordpo.commands.cli import Date, Overwrite, TemplateOptions, Tokenizer

Sources = Annotated[
    list[str], typer.Argument(help="Files (jsonl, json, also .gz; parquet), globs, folders, or OWNER/NAME on the hub.")
]
Output = Annotated[Path, typer.Argument(help="Folder for train.jsonl, validation.jsonl, rejected_rows.jsonl.")]
Subset = Annotated[str | None, typer.Option(help="Configuration of a data set of the hub.")]
Split = Annotated[str, typer.Option(help="Of a folder or a data set of the hub.")]
SEED = 1234


def pair_options(command: Callable[..., None]) -> Callable[..., None]:
    """A command that has its own options, and behind them those of :func:`_shared`, whose result it takes as `**`."""
    own = [one for one in inspect.signature(command).parameters.values() if one.kind is not one.VAR_KEYWORD]
    shared = inspect.signature(_shared).parameters

    @functools.wraps(command)
    def with_shared(**given: Any) -> None:
        options = _shared(**{name: given.pop(name) for name in shared})
        command(**given, **options)

    with_shared.__signature__ = inspect.Signature([*own, *shared.values()])  # pyright: ignore[reportAttributeAccessIssue]
    return with_shared


def _shared(
    template: Annotated[str, typer.Option(help="plain, or chat: the tokenizer's own chat template.")] = "plain",
    tokenizer: Tokenizer = None,
    system: Annotated[
        str | None, typer.Option(help="System turn where a row has none; not given = the template's own.")
    ] = None,
    date: Date = None,
    template_option: TemplateOptions = None,
    ignore_columns: Annotated[
        list[str] | None,
        typer.Option(
            help="Columns, and keys of messages, not to read: NAME,NAME; else what carries meaning is refused."
        ),
    ] = None,
    num_validation: Annotated[
        int, typer.Option(min=0, help="Pairs kept apart for validation; no question is on both sides.")
    ] = 0,
    limit: Annotated[int | None, typer.Option(min=1, help="Use the first so many rows; not given = all.")] = None,
    max_rejected: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Share of rows that may give no pair; above it nothing is written.")
    ] = 0.01,
    one_per_question: Annotated[
        bool, typer.Option("--one-per-question", help="Keep only the first pair of each question.")
    ] = False,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes; not given = one a core. The pairs are the same.")
    ] = None,
    seed: Annotated[int, typer.Option(help="The same seed gives the same pairs.")] = SEED,
    overwrite: Overwrite = False,
) -> dict[str, Any]:
    """What the options stand for, by the names that the `prepare_*` functions have for it."""
    from nemo_minordpo.core.chat_template import parse_options
    from nemo_minordpo.prepare.build import BuildOptions
    from nemo_minordpo.prepare.chat import Prompting

    return {
        "seed": seed,
        "ignore_columns": [name.strip() for text in ignore_columns or () for name in text.split(",") if name.strip()],
        "prompting": Prompting(
            template=template,
            tokenizer=tokenizer,
            system=system,
            date=date,
            template_options=parse_options(template_option or []),
        ),
        "options": BuildOptions(
            num_validation=num_validation,
            limit=limit,
            max_rejected=max_rejected,
            one_per_question=one_per_question,
            workers=workers,
            overwrite=overwrite,
        ),
    }
