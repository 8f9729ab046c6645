"""The options shared by all commands that make pairs: declared once, and added by a decorator."""

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from nemo_minordpo import DEFAULT_SEED
from nemo_minordpo.commands.cli import Date, Overwrite, TemplateOptions, Tokenizer

Sources = Annotated[
    list[str], typer.Argument(help="Files (jsonl, json, also .gz; parquet), globs, folders, or OWNER/NAME on the hub.")
]
Output = Annotated[Path, typer.Argument(help="Folder for train.jsonl, validation.jsonl, rejected_rows.jsonl.")]
Subset = Annotated[str | None, typer.Option(help="Configuration of a data set on the hub.")]
Split = Annotated[str, typer.Option(help="Split to read from a folder or a data set on the hub.")]


def pair_options(command: Callable[..., None]) -> Callable[..., None]:
    """Append the options of :func:`_shared` to those of a command, which receives its result as keyword arguments."""
    own = [option for option in inspect.signature(command).parameters.values() if option.kind is not option.VAR_KEYWORD]
    shared = inspect.signature(_shared).parameters

    @functools.wraps(command)
    def with_shared(**given: Any) -> None:
        options = _shared(**{name: given.pop(name) for name in shared})
        command(**given, **options)

    with_shared.__signature__ = inspect.Signature([*own, *shared.values()])  # pyright: ignore[reportAttributeAccessIssue]
    return with_shared


def _shared(
    template: Annotated[str, typer.Option(help="plain, or chat for the tokenizer's own chat template.")] = "plain",
    tokenizer: Tokenizer = None,
    system: Annotated[
        str | None, typer.Option(help="System turn for rows without one; default: the template's own.")
    ] = None,
    date: Date = None,
    template_option: TemplateOptions = None,
    ignore_columns: Annotated[
        list[str] | None,
        typer.Option(
            help="Columns and message keys to leave unread, NAME,NAME; else unread ones with meaning stop the build."
        ),
    ] = None,
    num_validation: Annotated[
        int, typer.Option(min=0, help="Pairs to hold out for validation; no question is on both sides.")
    ] = 0,
    limit: Annotated[int | None, typer.Option(min=1, help="Use only the first N rows; default: all.")] = None,
    max_rejected: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Share of rows that may give no pair; above it, nothing is written.")
    ] = 0.01,
    one_per_question: Annotated[
        bool, typer.Option("--one-per-question", help="Use only the first pair of each question.")
    ] = False,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes; default: one per core. The pairs do not depend on it.")
    ] = None,
    seed: Annotated[int, typer.Option(help="The same seed gives the same pairs.")] = DEFAULT_SEED,
    overwrite: Overwrite = False,
) -> dict[str, Any]:
    """Convert the options to keyword arguments of the `prepare_*` functions."""
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
