"""Commands of a training run."""

from pathlib import Path
from typing import Annotated

import typer


def reference(context: typer.Context) -> None:
    r"""Evaluate a run's reference once, and stop before the first step.

    Takes the same settings as `train`. The log-probabilities of every response under the starting weights are cached
    next to the run folder (or in model.dpo.reference_cache) and shared by all runs with the same weights, tokenizer,
    pairs, length limit, precision and code, whatever their loss, beta, learning rate or layout. `train` does the same
    if nothing is cached yet; if several runs start together, one evaluates and the others wait.

    Example: once, before a sweep
      minordpo reference \
        pretrained_checkpoint.restore_from_path=base.nemo \
        'model.data.data_prefix.train=[pairs/train.jsonl]' \
        model.dpo.ref_policy_kl_penalty=0.1 \
        exp_manager.explicit_log_dir=runs/beta_0.1
    """
    from nemo_minordpo.train.launch import main as launch

    launch(context.args, only_reference=True)


def train(context: typer.Context) -> None:
    r"""Train on one machine, configured by key=value settings.

    Everything after `train` is a Hydra override of conf/train.yaml. On a cluster, start every rank with torchrun or
    srun as `python -m nemo_minordpo.train`, with the same overrides.

    Example: MinorDPO on one machine with 2 processes
      minordpo train \
        pretrained_checkpoint.restore_from_path=base.nemo \
        'model.data.data_prefix.train=[pairs/train.jsonl]' \
        model.dpo.preference_loss=minordpo model.dpo.ref_policy_kl_penalty=0.1 \
        trainer.devices=2 model.tensor_model_parallel_size=2 \
        exp_manager.explicit_log_dir=runs/minordpo

    Most common settings:
      model.dpo.preference_loss=NAME            minordpo, dpo, dpop, ..., or your own: package.module:function
      model.dpo.ref_policy_kl_penalty=BETA      > 0; smaller values allow a larger distance from the reference
      model.optim.lr=RATE
      model.global_batch_size=N                 pairs per step
      trainer.dpo.max_steps=N
      trainer.devices=N trainer.num_nodes=N     processes per node, nodes
      model.tensor_model_parallel_size=N        TP
      model.pipeline_model_parallel_size=N      PP
      model.data.packed_sequence_size=TOKENS    per row of packed pairs; longer rows are faster but need more memory
      model.peft.peft_scheme=lora               train adapters instead of the weights

    Output: exp_manager.explicit_log_dir, one folder per run, with metrics.jsonl (a line per step), config.yaml,
      manifest.json, checkpoints and the .nemo.
    To resume a stopped run, repeat the same command.
    Next: minordpo export-hf runs/minordpo hf/minordpo
    """
    from nemo_minordpo.train.launch import main as launch

    launch(context.args)


def plan(
    context: typer.Context,
    device_memory: Annotated[
        float | None, typer.Option(min=0.1, help="Memory per device in GiB; default: this machine's.")
    ] = None,
    device_tflops: Annotated[
        float | None, typer.Option(min=1e-3, help="Peak matrix-product TFLOP/s per device; default: measured here.")
    ] = None,
    efficiency: Annotated[
        float, typer.Option(min=0.01, max=1.0, help="Fraction of the peak that a step reaches.")
    ] = 0.4,
    launcher: Annotated[bool, typer.Option("--launcher", hidden=True)] = False,
) -> None:
    r"""Check the settings of a run and estimate what it needs, before it waits in a queue.

    Takes the same settings as `train` and writes nothing. Prints the layout, the memory per rank by purpose, the
    operations per step, and the expected time per step and for the run. If the layout cannot work or does not fit in
    the device's memory, it is rejected, and the nearest ones that do are listed.

    Example: a 70B model on 8 nodes of 8 H100
      minordpo plan --device-memory 80 --device-tflops 989 \
        pretrained_checkpoint.restore_from_path=llama-3.1-70b.nemo \
        'model.data.data_prefix.train=[pairs/train.jsonl]' model.dpo.ref_policy_kl_penalty=0.1 \
        model.optim.lr=1e-6 model.global_batch_size=128 precision=bf16 model.optim.name=mcore_distributed_optim \
        trainer.num_nodes=8 trainer.devices=8 \
        model.tensor_model_parallel_size=8 model.pipeline_model_parallel_size=4 \
        exp_manager.explicit_log_dir=runs/llama
    """
    from nemo_minordpo.train.plan import main as make_plan

    make_plan(
        context.args,
        device_memory_gib=device_memory,
        device_tflops=device_tflops,
        efficiency=efficiency,
        launcher=launcher,
    )


def status(
    run: Annotated[Path, typer.Argument(help="Run folder.")],
) -> None:
    """Show the state of a run: last step, rewards, throughput, time left, checkpoints, and why each attempt ended.

    Exit code: 0 if the run is complete, else 1.

    Example:
      minordpo status runs/minordpo
    """
    from nemo_minordpo.report.status import print_status

    if not print_status(run):
        raise typer.Exit(1)
