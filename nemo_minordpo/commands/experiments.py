"""Commands for the machine and for the whole pipeline."""

from functools import partial
from pathlib import Path
from typing import Annotated

import typer


def doctor() -> None:
    """Show what this machine has and lacks for training.

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
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value on top of the YAML.")] = None,
    slurm: Annotated[
        int | None,
        typer.Option(min=1, help="Submit the runs to Slurm, this many at a time; default: run them here, in turn."),
    ] = None,
) -> None:
    """Run the whole pipeline for every run of an experiment, one command per stage.

    List the settings in which runs differ under `sweep`, in Hydra's sweep syntax. Rerunning repeats only missing or
    changed stages; a failed run does not stop the others.

    Examples:
      minordpo sweep demo
      minordpo sweep demo work=runs/short train.trainer.dpo.max_steps=5 sweep.model.dpo.preference_loss=dpo,minordpo
      minordpo sweep demo work=runs/rates sweep.model.optim.lr=1e-4,5e-4 'sweep.model.seed=range(1,4)'
    """
    from nemo_minordpo.commands.checks import check_command
    from nemo_minordpo.sweep import run_sweep

    check = partial(check_command, context.find_root().command)
    run_sweep(experiment, overrides or [], slurm=slurm, check=check)
