"""TensorBoard and W&B, opened by rank 0 only, before anything slow, so that errors show early."""

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

# W&B's x-axis, named as by Lightning's logger, so that runs can be compared with those of other trainers.
STEP = "trainer/global_step"


class Logger(Protocol):
    """Receives the numbers of a run."""

    def start(self, step: int) -> None:
        """The run continues after this step; values of later steps, logged by an earlier attempt, are void."""
        ...

    def log(self, values: dict[str, float], step: int) -> None: ...

    def close(self, *, failed: bool) -> None: ...


def open_loggers(config: TrainConfig, folder: Path) -> list[Logger]:
    """Open the loggers that the configuration asks for.

    Args:
        config: the run's.
        folder: the run's.

    Raises:
        UserError: a logger cannot be opened; the message names its setting.
    """
    loggers: list[Logger] = []
    if config.exp_manager.create_tensorboard_logger:
        loggers.append(TensorBoard(folder / file_names.TENSORBOARD))
    if config.exp_manager.create_wandb_logger:
        loggers.append(Wandb(config, folder))
    return loggers


class TensorBoard:
    """TensorBoard event files, a new one per attempt."""

    def __init__(self, folder: Path) -> None:
        try:
            from torch.utils.tensorboard.writer import SummaryWriter
        except ImportError as error:
            raise UserError(
                f"exp_manager.create_tensorboard_logger: TensorBoard cannot be imported ({error}): install "
                "tensorboard, or set exp_manager.create_tensorboard_logger=false"
            ) from error
        self._folder, self._open = folder, SummaryWriter
        self._writer: Any = None

    def start(self, step: int) -> None:
        # hides steps of an earlier attempt that this one repeats
        self._writer = self._open(str(self._folder), purge_step=step + 1 if step else 0)

    def log(self, values: dict[str, float], step: int) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self, *, failed: bool) -> None:
        if self._writer is not None:
            self._writer.close()


class Wandb:
    """One W&B run, continued by every attempt; its id is in the run folder."""

    def __init__(self, config: TrainConfig, folder: Path) -> None:
        try:
            import wandb
        except ImportError as error:
            raise UserError(
                f"exp_manager.create_wandb_logger: W&B cannot be imported ({error}): install wandb, or set "
                "exp_manager.create_wandb_logger=false"
            ) from error
        arguments = wandb_arguments(config, folder)
        try:
            self._run: Any = wandb.init(**arguments)
        except (wandb.Error, TypeError, ValueError) as error:
            raise UserError(
                f"exp_manager.create_wandb_logger: W&B cannot be opened: {' '.join(str(error).split())}\n"
                "Set a key with `wandb login` or WANDB_API_KEY; with WANDB_MODE=offline in the environment, W&B only "
                f"writes to {arguments['dir']}, for `wandb sync`; exp_manager.wandb_logger_kwargs are arguments of "
                "wandb.init"
            ) from error
        self._run.define_metric(STEP)
        self._run.define_metric("*", step_metric=STEP, step_sync=True)

    def start(self, step: int) -> None:
        """Does nothing: W&B cannot discard logged values, so repeated steps are plotted twice."""

    def log(self, values: dict[str, float], step: int) -> None:
        self._try(lambda: self._run.log({**values, STEP: step}))

    def close(self, *, failed: bool) -> None:
        self._try(lambda: self._run.finish(exit_code=int(failed)))

    def _try(self, action: Callable[[], None]) -> None:
        """Call W&B during a run; an error of W&B must not end the run.

        W&B's service exits on SIGTERM, which Slurm sends to all processes of a job, before the run has saved the
        checkpoint that the signal asks for.
        """
        if self._run is None:
            return
        try:
            action()
        except Exception as error:  # W&B documents no exceptions
            self._run = None
            problem = f"{type(error).__name__}: {error}"
            say(f"W&B gets no more metrics from this attempt ({problem}); metrics.jsonl still does")


def wandb_arguments(config: TrainConfig, folder: Path) -> dict[str, Any]:
    """The arguments of `wandb.init`: the user's, from the configuration or W&B's own variables, else the run's."""
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
    """The id that the first attempt drew at random; another run may have had the same folder name."""
    if not path.exists():
        write_text(path, f"{uuid.uuid4().hex[:16]}\n")
    return path.read_text(encoding="utf-8").strip()
