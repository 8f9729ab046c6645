"""Commands that measure models and compare runs."""

from pathlib import Path
from typing import Annotated, Any, cast

import typer

from nemo_minordpo.commands.cli import Date, Device, Dtype, Overwrite, TemplateOptions
from nemo_minordpo.errors import UserError
from nemo_minordpo.records import SampledScore


def evaluate(
    model: Annotated[Path, typer.Argument(help="Hugging Face folder.")],
    questions: Annotated[Path, typer.Argument(help="GSM8K's test.jsonl, or any jsonl with its two keys.")],
    output: Annotated[Path, typer.Argument(help="Folder for predictions.jsonl and score.json.")],
    template: Annotated[
        str, typer.Option(help="plain, chat (the tokenizer's template), or auto: chat if there is one.")
    ] = "auto",
    system: Annotated[str | None, typer.Option(help="System turn; default: the template's own.")] = None,
    date: Date = None,
    template_option: TemplateOptions = None,
    prompts_of: Annotated[
        Path | None,
        typer.Option(
            help="Pairs that `prepare` wrote, or a model trained on such pairs: use their prompt format (template, "
            "system turn, date, options), except for options given here.",
            show_default=False,
        ),
    ] = None,
    samples: Annotated[int, typer.Option(min=1, help="Answers per question; more than one needs --temperature.")] = 1,
    temperature: Annotated[
        float, typer.Option(min=0, help="0: greedy; 1: draw answers as the model gives them.")
    ] = 0.0,
    top_p: Annotated[
        float | None, typer.Option(help="Draw from the likeliest tokens that have this probability together.")
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Seed for drawing; default: 0.")] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Answers written at a time; default: as many as fit, up to 64.")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longer answers are cut.")] = 512,
    limit: Annotated[int | None, typer.Option(min=1, help="Ask only the first N questions; default: all.")] = None,
    dtype: Dtype = "auto",
    device: Device = "auto",
    engine: Annotated[
        str, typer.Option(help="transformers, vllm, or auto: vllm if it is installed and there is a GPU.")
    ] = "auto",
    overwrite: Overwrite = False,
) -> None:
    """Answer questions and score the answers.

    Decodes greedily, with the paper's prompt; rerun an interrupted evaluation to resume it. With --samples, answers are
    drawn, and the score has maj@N and pass@k.

    Examples: in the training's prompt format, eight samples per question, and a Qwen3 without thinking
      minordpo evaluate hf/minordpo gsm8k/test.jsonl runs/minordpo/evaluation --limit 200 --prompts-of hf/minordpo
      minordpo evaluate hf/minordpo gsm8k/test.jsonl samples --samples 8 --temperature 0.7 --seed 1
      minordpo evaluate hf/base gsm8k/test.jsonl evaluation/base --template-option enable_thinking=false
    """
    from nemo_minordpo.core.chat_template import parse_options
    from nemo_minordpo.evaluate.run import evaluate

    score = evaluate(
        model, questions, output,
        template=cast(Any, template), system=system, date=date, template_options=parse_options(template_option or []),
        prompts_of=prompts_of, samples=samples, temperature=temperature, top_p=top_p, seed=seed,
        batch_size=batch_size, max_new_tokens=max_new_tokens, limit=limit, dtype=dtype, device=device, engine=engine,
        overwrite=overwrite,
    )  # fmt: skip
    low, high = score.strict_interval_95
    sampled = ""
    if isinstance(score, SampledScore):
        number, passed = score.num_samples, score.strict_pass_at[str(score.num_samples)]
        sampled = f"maj@{number} {score.strict_majority_accuracy:.1%}, pass@{number} {passed:.1%}, "
    typer.echo(
        f"{score.num_questions} questions: strict {score.strict_accuracy:.1%} (95 % interval {low:.1%} to {high:.1%}), "
        f"{sampled}flexible {score.flexible_accuracy:.1%}, degenerate {score.degenerate_rate:.1%} -> {output}"
    )


def score(
    model: Annotated[Path, typer.Argument(help="Hugging Face folder.")],
    pairs: Annotated[list[str], typer.Argument(help="Files of pairs, or quoted globs.")],
    output: Annotated[Path, typer.Argument(help="Folder for pair_scores.jsonl and pair_score.json.")],
    reference: Annotated[
        Path | None,
        typer.Option(help="Hugging Face folder: also the rewards against this model.", show_default=False),
    ] = None,
    seq_length: Annotated[
        int | None, typer.Option(min=1, help="Leave longer pairs out; default: the model's context.")
    ] = None,
    append_eos: Annotated[bool, typer.Option(help="End every response, as training does.")] = True,
    invalid_pairs: Annotated[str, typer.Option(help="refuse, or drop: leave them out.")] = "refuse",
    limit: Annotated[int | None, typer.Option(min=1, help="Score only the first N pairs; default: all.")] = None,
    dtype: Dtype = "auto",
    device: Device = "auto",
    overwrite: Overwrite = False,
) -> None:
    """Score a model on pairs: how often, and by how much, the chosen response is likelier than the rejected one.

    With --reference, also the rewards, as training's validation reports them on the same pairs.

    Examples:
      minordpo score hf/base pairs/validation.jsonl scores/base
      minordpo score hf/minordpo pairs/validation.jsonl scores/minordpo --reference hf/base
    """
    from nemo_minordpo.evaluate.pair_scores import score_pairs

    if invalid_pairs not in ("refuse", "drop"):
        raise UserError(f"--invalid-pairs is {invalid_pairs!r}: choose refuse or drop")
    found = score_pairs(
        model, pairs, output, reference=reference, seq_length=seq_length, append_eos=append_eos,
        invalid_pairs=cast(Any, invalid_pairs), limit=limit, dtype=dtype, device=device, overwrite=overwrite,
    )  # fmt: skip
    for name, value in found.metrics.items():
        low, high = found.intervals_95.get(name, (value, value))
        typer.echo(f"{name:24}{value:10.4f}  (95 % interval {low:.4f} to {high:.4f})")
    typer.echo(f"{found.num_pairs} pairs -> {output}")


def report(
    runs: Annotated[list[Path], typer.Argument(help="Run folders; a run's score is RUN/evaluation/score.json.")],
    output: Annotated[Path, typer.Option(help="Folder for report.html, report.md, report.csv, rewards.png and more.")],
    base: Annotated[Path | None, typer.Option(help="Folder with the base model's score.json.")] = None,
    overwrite: Overwrite = False,
) -> None:
    """Compare two runs or a whole sweep: an interactive page, tables, the paper's figures, and the findings in words.

    Runs are grouped by loss, beta and learning rate; runs that differ only in the seed are averaged. Unfinished, broken
    or damaged runs are shown as far as they got, with a note.

    Examples:
      minordpo report runs/dpo runs/minordpo --base evaluation/base --output report
      minordpo report sweep/runs/* --base evaluation/base --output report --overwrite
    """
    from nemo_minordpo.report import report

    report(runs, base=base, output=output, overwrite=overwrite)
