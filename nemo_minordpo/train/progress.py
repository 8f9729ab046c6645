"""What a run shows and logs: a progress bar, `metrics.jsonl`, TensorBoard and W&B. Rank 0 only."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from nemo_minordpo.config import TrainConfig
from nemo_minordpo.host import StandIn
from nemo_minordpo.records import StepMetrics, to_json_line
from nemo_minordpo.train.attempt import Attempt
from nemo_minordpo.train.run_folder import RunFolder


class RunLog:
    """Takes each line of metrics; does nothing on other ranks than the first."""

    def __init__(
        self,
        config: TrainConfig,
        folder: RunFolder,
        attempt: Attempt,
        *,
        stand_ins: list[StandIn],
        is_first_rank: bool,
    ) -> None:
        """`stand_ins`: named once, so that a run without a GPU says so."""
        self._config, self._folder, self._attempt, self._active = config, folder, attempt, is_first_rank
        self._console = Console(stderr=True)
        self._loggers = _loggers(config, folder) if is_first_rank else []
        self._bar: Progress | None = None
        if is_first_rank and stand_ins:
            self._say(
                f"{len(stand_ins)} stand-ins for what this machine lacks are active; `minordpo doctor` lists them"
            )

    @contextmanager
    def training(self, *, resumed: int, max_steps: int) -> Iterator[None]:
        """Show progress from where the run starts."""
        if not self._active:
            yield
            return
        self._attempt.check()
        if resumed:
            self._say(f"going on at step {resumed} of {max_steps}")
        columns = (
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
            TextColumn("left"), TimeRemainingColumn(), TextColumn("{task.fields[values]}"),
        )  # fmt: skip
        with (
            self._folder.open_metrics(after=resumed) as self._metrics,
            Progress(*columns, console=self._console, redirect_stdout=False) as bar,
        ):
            title = f"training {self._config.model.dpo.preference_loss}"
            self._task = bar.add_task(title, total=max_steps, completed=resumed, values="")
            self._bar = bar
            yield

    def __call__(self, line: StepMetrics) -> None:
        if not self._active:
            return
        self._attempt.check()
        self._metrics.write(to_json_line(line))
        for logger in self._loggers:
            logger.log_metrics({f"{line.split}/{name}": value for name, value in line.values.items()}, line.step)
        if line.split == "watch":
            self._say(f"answers after step {line.step}: {_summary_of_answers(line)}")
            return
        shown = _summary(line)
        if line.split == "validation":
            self._say(f"validation after step {line.step}: {shown}")
        elif self._bar is not None:
            self._bar.update(self._task, completed=line.step, values=shown)
            if not self._console.is_terminal:
                self._say(f"step {line.step}: {shown}")

    def alarm(self, step: int, reason: str) -> None:
        """Say it, and keep it among the events, where `minordpo status` and the report find it."""
        if self._active:
            self._attempt.note("alarm", step=step, detail=reason)
            self._console.print(f"alarm after step {step}: {reason}", style="bold red", highlight=False, soft_wrap=True)

    def finish(self, *, reason: str) -> None:
        """Close the loggers and say where things are; `reason` why the run was stopped, empty: it is complete."""
        for logger in self._loggers:
            logger.finalize("success")
        if self._active:
            where = self._folder.nemo if self._config.trainer.dpo.save_nemo else self._folder.checkpoints
            self._say(f"{reason}: a checkpoint is saved, the same command goes on" if reason else f"done: {where}")

    def _say(self, text: str) -> None:
        self._console.print(text, highlight=False, soft_wrap=True)


def _summary(line: StepMetrics) -> str:
    values = line.values
    parts = [
        f"loss {values['loss']:.4f}",
        f"chosen {values['rewards/chosen']:+.3f}",
        f"rejected {values['rewards/rejected']:+.3f}",
        f"accuracy {values['rewards/accuracy']:.2f}",
    ]
    if "grad_norm" in values:
        parts.append(f"grad norm {values['grad_norm']:.3g}")
    return "  ".join(parts)


def _summary_of_answers(line: StepMetrics) -> str:
    values = line.values
    return (
        f"{100 * values['degenerate_rate']:.0f} % repeat themselves  repeated 4-grams "
        f"{100 * values['repeated_4grams']:.0f} %  unfinished {100 * values['unfinished_rate']:.0f} %  "
        f"KL {values['kl_reference']:.3f}"
    )


def _loggers(config: TrainConfig, folder: RunFolder) -> list[Any]:
    """Lightning's loggers, as NeMo's exp_manager makes them, without its moving of files between versions."""
    from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger

    loggers: list[Any] = []
    settings = config.exp_manager
    if settings.create_tensorboard_logger:
        loggers.append(TensorBoardLogger(save_dir=str(folder.path), name="", version="tensorboard"))
    if settings.create_wandb_logger:
        loggers.append(WandbLogger(save_dir=str(folder.path), name=folder.path.name, **settings.wandb_logger_kwargs))
    return loggers
