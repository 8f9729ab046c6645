"""Commands about the machine and about the whole road."""

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
