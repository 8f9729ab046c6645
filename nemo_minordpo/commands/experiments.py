"""Commands about the machine and about the whole road."""

from functools import partial
from pathlib import Path
from typing import Annotated

import typer


def doctor() -> None:
    """Say what this machine has and lacks for training.

    Example:
      minordpo doctor
    """
    from nemo_minordpo.host.doctor import report

    report()


def sweep(
    context: typer.Context,
    experiment: Annotated[
        Path, typer.Argument(help="demo, real, paper-small, paper, or a YAML file like those in conf/experiment.")
    ],
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value over the YAML.")] = None,
    slurm: Annotated[
        int | None,
        typer.Option(min=1, help="Hand the runs to Slurm, so many at a time; not given = run them here, in turn."),
    ] = None,
) -> None:
    """Walk the whole road for every run of an experiment, a command a stage.

    What the runs differ in stands under `sweep`, in the syntax of Hydra's sweeps. Started again, it repeats only what
    is missing or has changed; a run that fails stops none of the others.

    Examples:
      minordpo sweep demo
      minordpo sweep demo work=runs/short train.trainer.dpo.max_steps=5 sweep.model.dpo.preference_loss=dpo,minordpo
      minordpo sweep demo work=runs/rates sweep.model.optim.lr=1e-4,5e-4 'sweep.model.seed=range(1,4)'
    """
    from nemo_minordpo.commands.checks import check_command
    from nemo_minordpo.sweep import run_sweep

    check = partial(check_command, context.find_root().command)
    run_sweep(experiment, overrides or [], slurm=slurm, check=check)
