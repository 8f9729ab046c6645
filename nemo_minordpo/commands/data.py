"""Commands that prepare questions and pairs."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from nemo_minordpo import DEFAULT_SEED
from nemo_minordpo.commands.cli import Overwrite, done
from nemo_minordpo.commands.pair_options import Output, Sources, Split, Subset, pair_options


def prepare_arithmetic(
    output: Annotated[Path, typer.Argument(help="Folder for train.jsonl and test.jsonl.")],
    num_train: Annotated[int, typer.Option(min=1, help="Problems in train.jsonl.")] = 2000,
    num_test: Annotated[int, typer.Option(min=1, help="Problems in test.jsonl; none is in train.jsonl.")] = 200,
    seed: Annotated[int, typer.Option(help="The same seed gives the same problems.")] = DEFAULT_SEED,
    overwrite: Overwrite = False,
) -> None:
    """Generate arithmetic word problems in GSM8K's format.

    Example: generate problems, then make pairs from them
      minordpo prepare arithmetic problems --num-train 2000
      minordpo prepare gsm8k problems/train.jsonl pairs
    """
    from nemo_minordpo.prepare.arithmetic import write_arithmetic

    done(write_arithmetic(output, num_train=num_train, num_test=num_test, seed=seed, overwrite=overwrite), output)


@pair_options
def prepare_gsm8k(
    source: Annotated[str, typer.Argument(help="File, glob or folder: rows of GSM8K, MetaMathQA or MATH.")],
    output: Output,
    **shared: Any,
) -> None:
    """Make preference pairs from worked answers; the two responses differ in one number.

    Chosen is the worked answer; rejected has a wrong result in one intermediate calculation: in GSM8K's calculator
    marks, in plain equations (MetaMathQA: query and response), or in LaTeX (MATH: problem and solution).

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
        typer.Option(help="MetaMathQA-395K, which has the question of each response: file, folder or hub name."),
    ] = None,
    marker: Annotated[
        str | None,
        typer.Option(help="Instead of --metamathqa: regular expression for the start of a question's line."),
    ] = None,
    keep_few_shot: Annotated[
        bool,
        typer.Option(
            "--keep-few-shot",
            help="Leave prompts without a certain question unchanged, instead of rejecting them.",
        ),
    ] = False,
    subset: Subset = None,
    split: Split = "train",
    **shared: Any,
) -> None:
    r"""Make zero-shot pairs from abacusai/MetaMath_DPO_FewShot, the training data of the MinorDPO paper.

    Its prompts show solved questions before the actual one. --metamathqa looks the actual question up: it is
    MetaMathQA's query for the row's chosen response, and the prompt must end with it; all rewrites of a question
    then stay on one side of the split. --marker takes the text after the last marker at the start of a line.
    A row whose question is not certain is rejected.

    Examples: first a thousand rows, then all
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
        str | None, typer.Option(help="Default: prompt, instruction, question, input or messages.")
    ] = None,
    chosen_column: Annotated[str | None, typer.Option(help="Default: chosen or chosen_response.")] = None,
    rejected_column: Annotated[str | None, typer.Option(help="Default: rejected or rejected_response.")] = None,
    system_column: Annotated[
        str | None, typer.Option(help="Column of the system turn; default: system, system_prompt or system_message.")
    ] = None,
    input_column: Annotated[
        str | None,
        typer.Option(help="Column of text after the prompt; default: input, if there is an instruction."),
    ] = None,
    history_column: Annotated[
        str | None, typer.Option(help="Column of earlier turns, as pairs or messages; default: history.")
    ] = None,
    tools_column: Annotated[
        str | None, typer.Option(help="Column of functions for the chat template; default: tools or functions.")
    ] = None,
    chosen_reward_column: Annotated[
        str | None, typer.Option(help="Default: chosen_reward, score_chosen or chosen_score, if present.")
    ] = None,
    rejected_reward_column: Annotated[
        str | None, typer.Option(help="Default: rejected_reward, score_rejected or rejected_score, if present.")
    ] = None,
    subset: Subset = None,
    split: Split = "train",
    **shared: Any,
) -> None:
    r"""Make pairs from a published preference set: jsonl, json, parquet, or a data set on the Hugging Face hub.

    Each row may be: prompt, chosen and rejected as strings; lists of messages, with a separate prompt or one that
    both begin with; UltraFeedback's completions with scores; Anthropic HH's dialogues; NeMo-Aligner's own jsonl;
    Alpaca's instruction, input and history. Each may have system and tools columns. A prompt that both responses
    repeat is removed from them. Unread columns are listed; those known to carry meaning stop the build unless
    --ignore-columns names them. --template plain uses strings as they are, for example if they are already rendered;
    chat renders them with the tokenizer's chat template, and lists of messages need it. `minordpo preview` shows the
    pairs as training sees them.

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
    """Make pairs from multiple choice questions: the right option against a wrong one.

    Rows are in the layout of ARC (also OpenBookQA) or HellaSwag.

    Examples:
      minordpo prepare choices ARC-Challenge/train.jsonl pairs
      minordpo prepare choices allenai/ai2_arc pairs --subset ARC-Challenge --template chat --tokenizer hf/base
    """
    from nemo_minordpo.prepare.choices import prepare_choices

    prepare_choices(sources, output, subset=subset, split=split, **shared)


@pair_options
def prepare_answers(
    sources: Annotated[
        list[str], typer.Argument(help="Folders of `minordpo evaluate --samples`; or files with an answer per row.")
    ],
    output: Output,
    rule: Annotated[
        Literal["strict", "flexible"], typer.Option(help="Which number of an answer counts, as in score.json.")
    ] = "strict",
    matching: Annotated[
        Literal["closest", "farthest", "random"],
        typer.Option(help="Which right and wrong answer make a pair, by their edit distance."),
    ] = "closest",
    pairs_per_question: Annotated[int, typer.Option(min=1, help="At most; no answer is in two pairs.")] = 1,
    subset: Subset = None,
    split: Split = "train",
    **shared: Any,
) -> None:
    r"""Make pairs from a model's own answers: a right one against a wrong one to the same question.

    Rows that evaluate did not write have question (put into the paper's prompt), query, problem, or prompt (used as it
    is); output, response, completion or generation; and correct (true or false) or gold, the right number. Answers
    that were cut are not used. Questions whose answers are all right or all wrong are counted and listed, and give no
    pair. Give the options for prompts that evaluate had.

    Examples:
      minordpo evaluate hf/base gsm8k/train.jsonl samples --samples 8 --temperature 1
      minordpo prepare answers samples pairs --template chat --tokenizer hf/base --num-validation 100
      minordpo prepare answers 'answers/*.jsonl' pairs --matching random --pairs-per-question 2
    """
    from nemo_minordpo.prepare.answers import prepare_answers

    prepare_answers(
        sources, output, rule=rule, matching=matching, pairs_per_question=pairs_per_question, subset=subset,
        split=split, **shared,
    )  # fmt: skip


def preview(
    pairs: Annotated[list[str], typer.Argument(help="Files of pairs; globs are allowed.")],
    tokenizer: Annotated[Path, typer.Option(help="Folder of the model's tokenizer.")],
    number: Annotated[int, typer.Option(min=1, help="Pairs to show.")] = 3,
    seq_length: Annotated[int, typer.Option(min=2, help="The run's model.data.seq_length.")] = 1024,
    append_eos: Annotated[bool, typer.Option(help="The run's model.data.append_eos.")] = True,
) -> None:
    """Show the first pairs as training reads them: tokens, where the response begins, how it ends.

    The prompt is dim, text that only one response has is green or red, and special tokens are reversed.

    Example:
      minordpo preview pairs/train.jsonl --tokenizer hf/base --number 2
    """
    from nemo_minordpo.pairs.preview import preview

    preview(pairs, tokenizer=tokenizer, number=number, seq_length=seq_length, append_eos=append_eos)
