"""Commands of a training run."""

from pathlib import Path
from typing import Annotated

import typer


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
      model.dpo.preference_loss=NAME            minordpo, dpo, dpop, ..., or your own: package.module:function
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


def plan(
    context: typer.Context,
    device_memory: Annotated[
        float | None, typer.Option(min=0.1, help="GiB of a rank's device; not given = this machine's.")
    ] = None,
    device_tflops: Annotated[
        float | None, typer.Option(min=1e-3, help="Peak of its matrix products; not given = measured here.")
    ] = None,
    efficiency: Annotated[float, typer.Option(min=0.01, max=1.0, help="Share of the peak that a step reaches.")] = 0.4,
    launcher: Annotated[bool, typer.Option("--launcher", hidden=True)] = False,
) -> None:
    r"""Check the settings of a run, and say what it needs, before it waits in a queue.

    The same settings as `train`; nothing is written. It says the layout, the memory of a rank by what it is for, the
    operations and the expected time of a step and of the run. A layout that cannot work, or does not fit into the
    device's memory, is refused, with the nearest ones that do.

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
    """Say where a run is: last step, rewards, throughput, time left, checkpoints, attempts and what ended them.

    Exit code: 0 complete, 1 not complete yet.

    Example:
      minordpo status runs/minordpo
    """
    from nemo_minordpo.report.status import print_status

    if not print_status(run):
        raise typer.Exit(1)
