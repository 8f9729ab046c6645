"""Commands that make questions and pairs."""

from pathlib import Path
from typing import Annotated, Any

import typer

from nemo_minordpo.commands.cli import Overwrite, done
from nemo_minordpo.commands.pair_options import SEED, Output, Sources, Split, Subset, pair_options


def prepare_arithmetic(
    output: Annotated[Path, typer.Argument(help="Folder for train.jsonl and test.jsonl.")],
    num_train: Annotated[int, typer.Option(min=1, help="Problems in train.jsonl.")] = 2000,
    num_test: Annotated[int, typer.Option(min=1, help="Problems in test.jsonl; none of them is in train.jsonl.")] = 200,
    seed: Annotated[int, typer.Option(help="The same seed gives the same problems.")] = SEED,
    overwrite: Overwrite = False,
) -> None:
    """Generate arithmetic word problems in GSM8K's format.

    Example: problems, then pairs from them
      minordpo prepare arithmetic problems --num-train 2000
      minordpo prepare gsm8k problems/train.jsonl pairs
    """
    from nemo_minordpo.prepare.arithmetic import write_arithmetic

    done(write_arithmetic(output, num_train=num_train, num_test=num_test, seed=seed, overwrite=overwrite), output)


@pair_options
def prepare_gsm8k(
    source: Annotated[
        str, typer.Argument(help="GSM8K's train.jsonl, MetaMathQA's or MATH's rows; a file, glob, folder.")
    ],
    output: Output,
    **shared: Any,
) -> None:
    """Make close preference pairs of worked answers.

    Chosen is the worked answer; rejected differs from it in the result of one intermediate calculation: in GSM8K's
    calculator marks, in plain equations (MetaMathQA: query and response), or in LaTeX (MATH: problem and solution).

    Examples:
      minordpo prepare gsm8k gsm8k/train.jsonl pairs
      minordpo prepare gsm8k gsm8k/train.jsonl pairs --template chat --tokenizer hf/base --num-validation 100
      minordpo prepare gsm8k MetaMathQA-395K.json pairs --max-rejected 0.2
    """
    from nemo_minordpo.prepare.gsm8k import prepare_gsm8k

    prepare_gsm8k(source, output, **shared)


@pair_options
def prepare_metamath(
    sources: Sources,
    output: Output,
    metamathqa: Annotated[
        list[str] | None,
        typer.Option(help="MetaMathQA-395K: file, folder or hub name; finds each question for certain."),
    ] = None,
    marker: Annotated[
        str | None, typer.Option(help="Instead: a regular expression of what begins each question's line.")
    ] = None,
    keep_few_shot: Annotated[
        bool,
        typer.Option("--keep-few-shot", help="Keep prompts whose question is not found, instead of rejecting them."),
    ] = False,
    subset: Subset = None,
    split: Split = "train",
    **shared: Any,
) -> None:
    r"""Make zero-shot pairs of abacusai/MetaMath_DPO_FewShot, as the MinorDPO paper trained on.

    Its prompts show solved questions before the one that is asked. With --metamathqa that one is looked up: it is
    the query that MetaMathQA has for the row's chosen response, and the prompt must end with it; rewrites of one
    question then stay on one side of the split. With --marker it is what stands behind the last marker at the start
    of a line. A row for which neither is certain is rejected.

    Examples: a thousand rows first, then all
      minordpo prepare metamath MetaMath_DPO_FewShot pairs --metamathqa MetaMathQA-395K.json --limit 1000
      minordpo prepare metamath abacusai/MetaMath_DPO_FewShot pairs --metamathqa meta-math/MetaMathQA \
        --template chat --tokenizer hf/base --num-validation 1000 --overwrite
      minordpo prepare metamath 'data/train-*.parquet' pairs --marker 'Question:'
    """
    from nemo_minordpo.prepare.metamath import prepare_metamath

    prepare_metamath(
        sources, output, metamathqa=metamathqa, marker=marker, keep_few_shot=keep_few_shot, subset=subset, split=split,
        **shared,
    )  # fmt: skip


@pair_options
def prepare_hf(
    sources: Sources,
    output: Output,
    prompt_column: Annotated[
        str | None, typer.Option(help="Not given = prompt, instruction, question, input, messages.")
    ] = None,
    chosen_column: Annotated[str | None, typer.Option(help="Not given = chosen or chosen_response.")] = None,
    rejected_column: Annotated[str | None, typer.Option(help="Not given = rejected or rejected_response.")] = None,
    system_column: Annotated[
        str | None, typer.Option(help="Of a system turn; not given = system, system_prompt or system_message.")
    ] = None,
    input_column: Annotated[
        str | None, typer.Option(help="Of a text behind the prompt; not given = input, beside instruction.")
    ] = None,
    history_column: Annotated[
        str | None, typer.Option(help="Of earlier turns, pairs or messages; not given = history.")
    ] = None,
    tools_column: Annotated[
        str | None, typer.Option(help="Of functions for the chat template; not given = tools or functions.")
    ] = None,
    chosen_reward_column: Annotated[
        str | None, typer.Option(help="Not given = chosen_reward, score_chosen or chosen_score, where there is one.")
    ] = None,
    rejected_reward_column: Annotated[
        str | None, typer.Option(help="Not given = rejected_reward, score_rejected or rejected_score.")
    ] = None,
    subset: Subset = None,
    split: Split = "train",
    **shared: Any,
) -> None:
    r"""Make pairs of a published preference set: jsonl, json, parquet, or a data set of the Hugging Face hub.

    Each row may be: prompt, chosen and rejected as strings; lists of messages, with the prompt apart or as the common
    beginning of both; UltraFeedback's completions with scores; Anthropic HH's dialogues; NeMo-Aligner's own jsonl;
    Alpaca's instruction, input and history; with system and tools columns. A prompt that stands twice is taken out.
    Columns that are not read are named; those known to carry meaning refuse the build unless --ignore-columns has them.
    --template plain takes strings as they are (rendered already, perhaps), chat renders them with the tokenizer's
    chat template; lists of messages need chat. `minordpo preview` shows the result as training sees it.

    Examples:
      minordpo prepare hf HuggingFaceH4/ultrafeedback_binarized pairs --split train_prefs \
        --template chat --tokenizer hf/base
      minordpo prepare hf 'data/*.jsonl.gz' more.parquet pairs --prompt-column question --num-validation 500
      minordpo prepare hf Anthropic/hh-rlhf pairs
    """
    from nemo_minordpo.prepare.columns import Columns
    from nemo_minordpo.prepare.preference import prepare_preference

    columns = Columns(
        prompt=prompt_column, chosen=chosen_column, rejected=rejected_column, system=system_column,
        input=input_column, history=history_column, tools=tools_column,
        chosen_reward=chosen_reward_column, rejected_reward=rejected_reward_column,
    )  # fmt: skip
    prepare_preference(sources, output, columns=columns, subset=subset, split=split, **shared)


@pair_options
def prepare_choices(
    sources: Sources,
    output: Output,
    subset: Subset = None,
    split: Split = "train",
    **shared: Any,
) -> None:
    """Make pairs of multiple choice questions: the right option against a wrong one.

    Rows as ARC (and OpenBookQA) or HellaSwag have them.

    Examples:
      minordpo prepare choices ARC-Challenge/train.jsonl pairs
      minordpo prepare choices allenai/ai2_arc pairs --subset ARC-Challenge --template chat --tokenizer hf/base
    """
    from nemo_minordpo.prepare.choices import prepare_choices

    prepare_choices(sources, output, subset=subset, split=split, **shared)


def preview(
    pairs: Annotated[list[str], typer.Argument(help="Files of pairs, or globs.")],
    tokenizer: Annotated[Path, typer.Option(help="Folder of the model's tokenizer.")],
    number: Annotated[int, typer.Option(min=1, help="Pairs to show.")] = 3,
    seq_length: Annotated[int, typer.Option(min=2, help="As model.data.seq_length of the run.")] = 1024,
    append_eos: Annotated[bool, typer.Option(help="As model.data.append_eos of the run.")] = True,
) -> None:
    """Show the first pairs as training will read them: tokens, where the response begins, how it ends.

    Colours: the prompt dim, what only one of the responses has in green or red, special tokens reversed.

    Example:
      minordpo preview pairs/train.jsonl --tokenizer hf/base --number 2
    """
    from nemo_minordpo.train.data.preview import preview

    preview(pairs, tokenizer=tokenizer, number=number, seq_length=seq_length, append_eos=append_eos)
