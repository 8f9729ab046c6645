"""`minordpo inspect`."""

from pathlib import Path
from typing import Annotated

import typer

from nemo_minordpo.commands.cli import Overwrite, Tokenizer, done


def inspect(
    pairs: Annotated[list[str], typer.Argument(help="Files of pairs, or quoted globs; earlier files first.")],
    output: Annotated[
        Path | None, typer.Option(help="Folder for inspect.html and pairs.csv; default: none, only the summary.")
    ] = None,
    test: Annotated[
        list[str] | None,
        typer.Option(help="jsonl of questions that no prompt should contain (question, prompt, problem or query)."),
    ] = None,
    tokenizer: Tokenizer = None,
    model: Annotated[
        Path | None,
        typer.Option(
            help="Hugging Face folder: also log-probabilities and CHES, by its tokenizer.", show_default=False
        ),
    ] = None,
    seq_length: Annotated[int, typer.Option(min=2, help="The run's model.data.seq_length.")] = 1024,
    keep: Annotated[
        list[str] | None, typer.Option(metavar="RULE", help="Keep only pairs that meet this rule; repeatable.")
    ] = None,
    drop: Annotated[list[str] | None, typer.Option(metavar="RULE", help="Leave out such pairs; repeatable.")] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes; default: one per core.")] = None,
    overwrite: Overwrite = False,
) -> None:
    r"""Look for faults in pairs before training: lengths, closeness, copies, scripts, refusals, cut ends, templates.

    The page shows the worst pairs of every kind; pairs.csv has one line per pair. A rule is a flag (refusal), or a
    measure, <, <=, > or >=, and a number (edit_distance<0.02); their names are the columns of pairs.csv. With rules,
    the output folder also has the pairs that stay, line by line as they were, and rejected_rows.jsonl, which says why
    each of the others went.

    Examples:
      minordpo inspect pairs/train.jsonl pairs/validation.jsonl --output inspected --test gsm8k/test.jsonl
      minordpo inspect pairs/train.jsonl --output inspected --model hf/base
      minordpo inspect pairs/train.jsonl --output filtered --drop near_duplicate --drop 'edit_distance<0.02'
    """
    from nemo_minordpo.inspect.run import inspect_pairs

    summary, manifest = inspect_pairs(
        pairs, output=output, tokenizer=tokenizer, model=model, test=test or (), seq_length=seq_length, keep=keep or (),
        drop=drop or (), workers=workers, overwrite=overwrite,
    )  # fmt: skip
    typer.echo(summary)
    if output is not None:
        done(manifest, output)
