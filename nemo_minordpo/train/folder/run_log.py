"""A run's output: progress bar, `metrics.jsonl`, TensorBoard and W&B. Rank 0 only."""

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import Progress

from nemo_minordpo.config import TrainConfig, loss_label
from nemo_minordpo.files import to_json_line
from nemo_minordpo.host import StandIn
from nemo_minordpo.records import StepMetrics
from nemo_minordpo.terminal import progress_bar
from nemo_minordpo.train.folder.attempt import Attempt
from nemo_minordpo.train.folder.loggers import open_loggers
from nemo_minordpo.train.folder.run_folder import RunFolder


class RunLog:
    """Receives each line of metrics; does nothing on ranks other than the first."""

    def __init__(
        self, config: TrainConfig, folder: RunFolder, attempt: Attempt | None, *, stand_ins: list[StandIn]
    ) -> None:
        """
        Args:
            config, folder: the run's.
            attempt: the attempt that logs; None on ranks other than the first.
            stand_ins: mentioned once, so that a run without a GPU says so.

        Raises:
            UserError: TensorBoard or W&B cannot be opened.
        """
        self._config, self._folder, self._attempt = config, folder, attempt
        self._console = Console(stderr=True)
        self._loggers = [] if attempt is None else open_loggers(config, folder.path)
        self._bar: Progress | None = None
        if attempt is not None and stand_ins:
            self._say(
                f"{len(stand_ins)} stand-ins for what this machine lacks are active; `minordpo doctor` lists them"
            )

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(self, kind: type[BaseException] | None, *more: object) -> None:
        for logger in self._loggers:
            logger.close(failed=kind is not None)

    @contextmanager
    def training(self, *, resumed: int, max_steps: int) -> Iterator[None]:
        """Show progress, starting at the step where the run resumes."""
        if self._attempt is None:
            yield
            return
        self._attempt.check()
        for logger in self._loggers:
            logger.start(resumed)
        if resumed:
            self._say(f"resumed at step {resumed} of {max_steps}")
        with (
            self._folder.open_metrics(after=resumed) as self._metrics,
            progress_bar("{task.fields[values]}", console=self._console, redirect_stdout=False) as bar,
        ):
            title = f"training {loss_label(self._config.model.dpo.preference_loss)}"
            self._task = bar.add_task(title, total=max_steps, completed=resumed, values="")
            self._bar = bar
            yield

    def __call__(self, line: StepMetrics) -> None:
        if self._attempt is None:
            return
        self._attempt.check()
        self._metrics.write(to_json_line(line))
        for logger in self._loggers:
            logger.log({f"{line.split}/{name}": value for name, value in line.values.items()}, line.step)
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
        """Print an alarm, and record it in the events for `minordpo status` and the report."""
        if self._attempt is not None:
            self._attempt.note("alarm", step=step, detail=reason)
            self._console.print(f"alarm after step {step}: {reason}", style="bold red", highlight=False, soft_wrap=True)

    def finish(self, *, reason: str) -> None:
        """Print the outcome; `reason` is why the run stopped early, empty if it is complete."""
        if self._attempt is not None:
            result = (
                self._folder.result(self._config) if self._config.trainer.dpo.save_nemo else self._folder.checkpoints
            )
            stopped = f"{reason}: a checkpoint was saved; run the same command to resume"
            self._say(stopped if reason else f"done: {result}")

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
