"""TensorBoard and W&B, opened before anything that takes time, by rank 0 alone."""

import os
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from omegaconf import OmegaConf

from nemo_minordpo import file_names
from nemo_minordpo.config import TrainConfig
from nemo_minordpo.errors import UserError
from nemo_minordpo.files import write_text
from nemo_minordpo.terminal import say

# W&B's axis, as Lightning's logger names it, so that runs compare with those of other trainers.
STEP = "trainer/global_step"


class Logger(Protocol):
    """Takes the numbers of a run."""

    def start(self, step: int) -> None:
        """The run continues behind this step; what was logged of later ones by an earlier attempt is void."""
        ...

    def log(self, values: dict[str, float], step: int) -> None: ...

    def close(self, *, failed: bool) -> None: ...


def open_loggers(config: TrainConfig, folder: Path) -> list[Logger]:
    """Those that the configuration asks for.

    Args:
        config: the run's.
        folder: the run's.

    Raises:
        UserError: one of them cannot be opened; with the setting that asks for it.
    """
    loggers: list[Logger] = []
    if config.exp_manager.create_tensorboard_logger:
        loggers.append(TensorBoard(folder / file_names.TENSORBOARD))
    if config.exp_manager.create_wandb_logger:
        loggers.append(Wandb(config, folder))
    return loggers


class TensorBoard:
    """Event files, a new one each attempt."""

    def __init__(self, folder: Path) -> None:
        try:
            from torch.utils.tensorboard.writer import SummaryWriter
        except ImportError as error:
            raise UserError(
                f"exp_manager.create_tensorboard_logger: TensorBoard cannot be imported ({error}): install "
                "tensorboard, or give exp_manager.create_tensorboard_logger=false"
            ) from error
        self._folder, self._open = folder, SummaryWriter
        self._writer: Any = None

    def start(self, step: int) -> None:
        # hides the steps that an earlier attempt did and this one does again
        self._writer = self._open(str(self._folder), purge_step=step + 1 if step else 0)

    def log(self, values: dict[str, float], step: int) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self, *, failed: bool) -> None:
        if self._writer is not None:
            self._writer.close()


class Wandb:
    """One W&B run, which every attempt continues: its id lies in the run folder."""

    def __init__(self, config: TrainConfig, folder: Path) -> None:
        try:
            import wandb
        except ImportError as error:
            raise UserError(
                f"exp_manager.create_wandb_logger: W&B cannot be imported ({error}): install wandb, or give "
                "exp_manager.create_wandb_logger=false"
            ) from error
        arguments = wandb_arguments(config, folder)
        try:
            self._run: Any = wandb.init(**arguments)
        except (wandb.Error, TypeError, ValueError) as error:
            raise UserError(
                f"exp_manager.create_wandb_logger: W&B cannot be opened: {' '.join(str(error).split())}\n"
                "A key comes from `wandb login` or WANDB_API_KEY; WANDB_MODE=offline in the environment writes to "
                f"{arguments['dir']} alone, for `wandb sync`; what exp_manager.wandb_logger_kwargs holds goes to "
                "wandb.init"
            ) from error
        self._run.define_metric(STEP)
        self._run.define_metric("*", step_metric=STEP, step_sync=True)

    def start(self, step: int) -> None:
        """Nothing: W&B takes no logged value back; steps that are done again are drawn twice."""

    def log(self, values: dict[str, float], step: int) -> None:
        self._try(lambda: self._run.log({**values, STEP: step}))

    def close(self, *, failed: bool) -> None:
        self._try(lambda: self._run.finish(exit_code=int(failed)))

    def _try(self, action: Callable[[], None]) -> None:
        """Of a run that computes: what becomes of W&B must not end it.

        Its service ends at SIGTERM, which Slurm sends to all processes of a job, before the checkpoint that the signal
        asks for is saved.
        """
        if self._run is None:
            return
        try:
            action()
        except Exception as error:  # W&B documents none
            self._run = None
            words = f"W&B takes no more metrics of this attempt ({type(error).__name__}: {error}); metrics.jsonl does"
            say(words)


def wandb_arguments(config: TrainConfig, folder: Path) -> dict[str, Any]:
    """Of `wandb.init`: what the user set, there or in W&B's own variables, before what follows from the run."""
    given = dict(config.exp_manager.wandb_logger_kwargs)
    own = given.pop("config", None) or {}
    settings: Any = OmegaConf.to_container(OmegaConf.structured(config))
    texts = {
        key: [str(tag) for tag in value] if key == "tags" else str(value)
        for key, value in given.items()
        if value is not None
    }
    return {
        "dir": str(folder),
        "project": os.environ.get("WANDB_PROJECT", "nemo-minordpo"),
        "name": os.environ.get("WANDB_NAME", folder.name),
        "id": texts.get("id") or os.environ.get("WANDB_RUN_ID") or _lasting_id(folder / file_names.WANDB_ID),
        "resume": "allow",
        **texts,
        "config": {**settings, **own},
    }


def _lasting_id(path: Path) -> str:
    """What the first attempt drew. Not from the folder's name: another run may have had it."""
    if not path.exists():
        write_text(path, f"{uuid.uuid4().hex[:16]}\n")
    return path.read_text(encoding="utf-8").strip()
