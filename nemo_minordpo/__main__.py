"""The command line: one command a stage; a command imports its own stage and nothing else."""

from pathlib import Path
from typing import Annotated, Any, cast

import typer

from nemo_minordpo.commandline import PLAIN, Command, Commands
from nemo_minordpo.records import Manifest

_FLOW = """Preference training (DPO, DPOP, MinorDPO) on NeMo-Aligner and Megatron-Core, from data to a measured model.

The road in order; each command reads files and writes files:
  minordpo doctor                                          what this machine has and lacks
  minordpo prepare gsm8k gsm8k/train.jsonl pairs           GSM8K -> preference pairs
  minordpo import-hf hf/base base.nemo                     Hugging Face -> .nemo
  minordpo verify hf/base base.nemo                        the two give the same logits
  minordpo reference KEY=VALUE ...                         what the reference says of the pairs, once for many runs
  minordpo train model.dpo.preference_loss=minordpo ...    .nemo + pairs -> a run folder
  minordpo export-hf runs/minordpo hf/minordpo             run folder -> Hugging Face
  minordpo evaluate hf/minordpo gsm8k/test.jsonl runs/minordpo/evaluation
  minordpo report runs/dpo runs/minordpo --output report   one table, one figure

All of it at once, on a small model that needs no download:
  minordpo pipeline demo

Nothing that exists is replaced without --overwrite. `minordpo COMMAND --help` explains a command by example.
"""


app = typer.Typer(help=_FLOW, cls=Commands, add_completion=False, pretty_exceptions_enable=False, **PLAIN)
prepare = typer.Typer(help="Make questions, and preference pairs of them.", **PLAIN)
app.add_typer(prepare, name="prepare")

Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the output if it exists.")]
Tokenizer = Annotated[Path | None, typer.Option(help="Folder of the model's tokenizer.", show_default=False)]


def main() -> None:
    """Entry point of `minordpo`."""
    app(prog_name="minordpo")


def _done(manifest: Manifest, output: Path) -> None:
    counts = ", ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in manifest.counts.items())
    typer.echo(f"{counts} -> {output}")


@app.command(cls=Command)
def doctor() -> None:
    """Say what this machine has and lacks for training.

    Example:
      minordpo doctor
    """
    from nemo_minordpo.host.doctor import report

    report()


@prepare.command("arithmetic", cls=Command)
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

    _done(write_arithmetic(output, num_train=num_train, num_test=num_test, seed=seed, overwrite=overwrite), output)


@prepare.command("gsm8k", cls=Command)
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


@app.command("import-hf", cls=Command)
def import_hf(
    source: Annotated[Path, typer.Argument(help="Hugging Face folder: config.json, safetensors, tokenizer.")],
    output: Annotated[Path, typer.Argument(help="The .nemo to write.")],
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16 or float16; not given = as stored.")] = None,
    overwrite: Overwrite = False,
) -> None:
    """Convert a Hugging Face model to .nemo.

    Llama (SmolLM2 too), Qwen1.5, Qwen2 and Qwen2.5; training can load the result at any TP and PP.

    Example:
      minordpo import-hf hf/base base.nemo
    """
    from nemo_minordpo.convert.hf_to_nemo import import_hf

    _done(import_hf(source, output, dtype=dtype, overwrite=overwrite), output)


@app.command("gguf-to-hf", cls=Command)
def gguf_to_hf(
    source: Annotated[Path, typer.Argument(help="The .gguf file of a Llama model with SmolLM's tokenizer.")],
    output: Annotated[Path, typer.Argument(help="Hugging Face folder to write.")],
    overwrite: Overwrite = False,
) -> None:
    """Convert a GGUF file to a Hugging Face folder.

    import-hf reads the result.

    Example:
      minordpo gguf-to-hf SmolLM2-135M-Instruct.Q4_1.gguf hf/smollm2
    """
    from nemo_minordpo.convert.gguf_to_hf import gguf_to_hf

    _done(gguf_to_hf(source, output, overwrite=overwrite), output)


@app.command(cls=Command)
def verify(
    hf: Annotated[Path, typer.Argument(help="Hugging Face folder.")],
    nemo: Annotated[Path, typer.Argument(help=".nemo that was made from it, or a run folder.")],
    text: Annotated[list[str] | None, typer.Option(help="A text to compare on; may be repeated.")] = None,
    tolerance: Annotated[float, typer.Option(min=0.0, help="Largest difference of a logit, float32.")] = 1e-4,
) -> None:
    """Compare the logits of a model and of its .nemo.

    One runs in transformers, the other in NeMo, both in float32.

    Example:
      minordpo verify hf/base base.nemo --text "Tom has 3 boxes of 12 apples."
    """
    from nemo_minordpo.convert.verify import verify

    typer.echo(str(verify(hf, nemo, texts=text, tolerance=tolerance)))


@app.command(cls=Command, context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def train(context: typer.Context) -> None:
    r"""Train on one machine, by key=value settings.

    Everything behind `train` is a Hydra override of conf/train.yaml. On a cluster, torchrun and srun start
    `python -m nemo_minordpo.train` with the same overrides, rank by rank.

    Example: MinorDPO on 2 processes of one machine
      minordpo train \
        pretrained_checkpoint.restore_from_path=base.nemo \
        'model.data.data_prefix.train=[pairs/train.jsonl]' \
        model.dpo.preference_loss=minordpo model.dpo.ref_policy_kl_penalty=0.1 \
        trainer.devices=2 model.tensor_model_parallel_size=2 \
        exp_manager.explicit_log_dir=runs/minordpo

    What is set most often:
      model.dpo.preference_loss=NAME            dpo, dpop, minordpo, ipo, rpo_sq, rpo_bwd_kl, rpo_fwd_kl
      model.dpo.ref_policy_kl_penalty=BETA      > 0: the smaller, the further from the reference
      model.optim.lr=RATE
      model.global_batch_size=N                 pairs in a step
      trainer.dpo.max_steps=N
      trainer.devices=N trainer.num_nodes=N     processes of a node, nodes
      model.tensor_model_parallel_size=N        TP
      model.pipeline_model_parallel_size=N      PP
      model.data.packed_sequence_size=TOKENS    of a row, in which many pairs lie: more = faster, up to the memory
      model.peft.peft_scheme=lora               train adapters instead of the weights

    Where results go: exp_manager.explicit_log_dir, one folder a run:
      metrics.jsonl (a line a step), config.yaml, manifest.json, checkpoints, the .nemo.
    The same command again goes on where a stopped run was.
    Next: minordpo export-hf runs/minordpo hf/minordpo
    """
    from nemo_minordpo.train.launch import main as launch

    launch(context.args)


@app.command(cls=Command, context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def reference(context: typer.Context) -> None:
    r"""Evaluate the reference of a run once, and stop before its first step.

    The same settings as `train`. Log-probabilities of every response under the starting weights are kept beside the
    run folder (or in model.dpo.reference_cache) and are read by every run with the same weights, tokenizer, pairs,
    length limit, precision and code, whatever its loss, beta, learning rate or layout. `train` does the same where
    nothing is kept yet; runs that start together wait for the first of them.

    Example: once, before a sweep
      minordpo reference \
        pretrained_checkpoint.restore_from_path=base.nemo \
        'model.data.data_prefix.train=[pairs/train.jsonl]' \
        model.dpo.ref_policy_kl_penalty=0.1 \
        exp_manager.explicit_log_dir=runs/beta_0.1
    """
    from nemo_minordpo.train.launch import main as launch

    launch(context.args, only_reference=True)


@app.command("export-hf", cls=Command)
def export_hf(
    source: Annotated[Path, typer.Argument(help="Run folder, checkpoint folder or .nemo.")],
    output: Annotated[Path, typer.Argument(help="Hugging Face folder to write.")],
    tokenizer: Tokenizer = None,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16 or float16; not given = as stored.")] = None,
    overwrite: Overwrite = False,
) -> None:
    """Convert what training wrote to a Hugging Face folder.

    Run folders of any TP and PP; the tokenizer is the base model's unless another one is named.

    Example:
      minordpo export-hf runs/minordpo hf/minordpo
    """
    from nemo_minordpo.convert.nemo_to_hf import export_hf

    _done(export_hf(source, output, tokenizer=tokenizer, dtype=dtype, overwrite=overwrite), output)


@app.command(cls=Command)
def evaluate(
    model: Annotated[Path, typer.Argument(help="Hugging Face folder.")],
    questions: Annotated[Path, typer.Argument(help="GSM8K's test.jsonl, or any jsonl with its two keys.")],
    output: Annotated[Path, typer.Argument(help="Folder for predictions.jsonl and score.json.")],
    template: Annotated[
        str, typer.Option(help="plain, chat (the tokenizer's template), or auto: chat if there is one.")
    ] = "auto",
    system: Annotated[str | None, typer.Option(help="System turn; not given = the template's own.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Questions answered at a time.")] = 16,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="An answer is cut here.")] = 512,
    limit: Annotated[int | None, typer.Option(min=1, help="Ask the first so many questions; not given = all.")] = None,
    dtype: Annotated[
        str, typer.Option(help="float32, bfloat16, float16, or auto: as stored; float32 on a CPU.")
    ] = "auto",
    device: Annotated[str, typer.Option(help="cpu, cuda, ..., or auto: cuda if there is one.")] = "auto",
    overwrite: Overwrite = False,
) -> None:
    """Answer questions and score the answers.

    Greedy, with the paper's prompt; a stopped call goes on where it was.

    Example:
      minordpo evaluate hf/minordpo gsm8k/test.jsonl runs/minordpo/evaluation --limit 200
    """
    from nemo_minordpo.evaluate.run import evaluate

    score = evaluate(
        model, questions, output,
        template=cast(Any, template), system=system, batch_size=batch_size, max_new_tokens=max_new_tokens,
        limit=limit, dtype=dtype, device=device, overwrite=overwrite,
    )  # fmt: skip
    low, high = score.strict_interval_95
    typer.echo(
        f"{score.num_questions} questions: strict {score.strict_accuracy:.1%} (95 % interval {low:.1%} to {high:.1%}), "
        f"flexible {score.flexible_accuracy:.1%}, degenerate {score.degenerate_rate:.1%} -> {output}"
    )


@app.command(cls=Command)
def report(
    runs: Annotated[list[Path], typer.Argument(help="Run folders; a run's score is RUN/evaluation/score.json.")],
    output: Annotated[Path, typer.Option(help="Folder for report.md, report.csv and rewards.png.")],
    base: Annotated[Path | None, typer.Option(help="Folder with the base model's score.json.")] = None,
    overwrite: Overwrite = False,
) -> None:
    """Compare runs in one table and one figure.

    The table: accuracy, degenerate answers, rewards. The figure: the reward curves, a panel a run.

    Example:
      minordpo report runs/dpo runs/minordpo --base evaluation/base --output report
    """
    from nemo_minordpo.report import report

    report(runs, base=base, output=output, overwrite=overwrite)


@app.command(cls=Command)
def pipeline(
    config: Annotated[Path, typer.Argument(help="demo, real, or a YAML file like those in conf/pipeline.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value over the YAML.")] = None,
) -> None:
    """Walk the whole road, a command a stage.

    Started again, it repeats only what is missing or has changed.

    Examples:
      minordpo pipeline demo
      minordpo pipeline demo work=runs/short train.trainer.dpo.max_steps=5 'losses=[minordpo]'
    """
    from nemo_minordpo.pipeline import run_pipeline

    run_pipeline(config, overrides or [])


if __name__ == "__main__":
    main()
