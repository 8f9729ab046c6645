"""Commands that make questions and pairs."""

from pathlib import Path
from typing import Annotated, Any, cast

import typer

from nemo_minordpo.commands.line import Overwrite, Tokenizer, done


def prepare_arithmetic(
    output: Annotated[Path, typer.Argument(help="Folder for train.jsonl and test.jsonl.")],
    num_train: Annotated[int, typer.Option(min=1, help="Problems in train.jsonl.")] = 2000,
    num_test: Annotated[int, typer.Option(min=1, help="Problems in test.jsonl; none of them is in train.jsonl.")] = 200,
    seed: Annotated[int, typer.Option(help="The same seed gives the same problems.")] = 1234,
    overwrite: Overwrite = False,
) -> None:
    """Generate arithmetic word problems in GSM8K's format.

    Example: problems, then pairs from them
      minordpo prepare arithmetic problems --num-train 2000
      minordpo prepare gsm8k problems/train.jsonl pairs
    """
    from nemo_minordpo.prepare.arithmetic import write_arithmetic

    done(write_arithmetic(output, num_train=num_train, num_test=num_test, seed=seed, overwrite=overwrite), output)


def prepare_gsm8k(
    source: Annotated[Path, typer.Argument(help="GSM8K's train.jsonl, or any jsonl with its two keys.")],
    output: Annotated[Path, typer.Argument(help="Folder for train.jsonl, validation.jsonl, rejected_rows.jsonl.")],
    template: Annotated[str, typer.Option(help="plain, or chat: the tokenizer's own chat template.")] = "plain",
    tokenizer: Tokenizer = None,
    system: Annotated[str | None, typer.Option(help="System turn; not given = the template's own.")] = None,
    num_validation: Annotated[int, typer.Option(min=0, help="Pairs kept apart for validation.")] = 0,
    limit: Annotated[int | None, typer.Option(min=1, help="Use the first so many questions; not given = all.")] = None,
    seed: Annotated[int, typer.Option(help="The same seed gives the same pairs.")] = 1234,
    overwrite: Overwrite = False,
) -> None:
    """Make close preference pairs of worked answers.

    Chosen is the worked answer; rejected differs from it in the result of one intermediate calculation.

    Examples:
      minordpo prepare gsm8k gsm8k/train.jsonl pairs
      minordpo prepare gsm8k gsm8k/train.jsonl pairs --template chat --tokenizer hf/base --num-validation 100
    """
    from nemo_minordpo.prepare.gsm8k import prepare_gsm8k

    prepare_gsm8k(
        source, output,
        template=cast(Any, template),  # the stage says which there are
        tokenizer=tokenizer, system=system, num_validation=num_validation, limit=limit, seed=seed, overwrite=overwrite,
    )  # fmt: skip
