"""Run an experiment from questions to a report; each stage is a `minordpo` command in its own process.

All results go into one work folder, whose journal records the completed stages. Rerunning a sweep repeats only the
stages whose command line has changed, whose output is missing, or that depend on such a stage. A failed run does not
stop the others.

`config.py` defines the YAML, `grid.py` expands it into runs, `stages.py` lists the stages (`stage.py`), `journal.py`
records completed ones, `process.py` runs a command, `slurm.py` submits the runs to a cluster.
"""

import shlex
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Protocol

from filelock import FileLock, Timeout
from rich.console import Console

from nemo_minordpo.errors import UserError
from nemo_minordpo.file_names import CONFIG, LOGS
from nemo_minordpo.sweep.config import Experiment, load_experiment
from nemo_minordpo.sweep.grid import runs_of
from nemo_minordpo.sweep.journal import Journal
from nemo_minordpo.sweep.process import run_and_log
from nemo_minordpo.sweep.slurm import SUBMITTED, submit
from nemo_minordpo.sweep.stage import Stage
from nemo_minordpo.sweep.stages import report_of, run_folder, run_names, stages_of

__all__ = ["run_sweep"]


class Check(Protocol):
    """Raises UserError if a `minordpo` command line is wrong."""

    def __call__(self, words: list[str], /, *, model: Path | None) -> None: ...


def run_sweep(config: Path, overrides: list[str], *, check: Check, slurm: int | None = None) -> None:
    """Run each stage that `config` describes once, then report on the runs.

    Args:
        config: YAML file, or the name of a shipped experiment ("demo", "real", ...).
        overrides: `key=value` on top of the file, with dots for nested keys.
        check: raises UserError if the options or settings of a `minordpo` command line are wrong; gets its words and
            the model's Hugging Face folder. All stages are checked before the first one runs.
        slurm: submit the runs to Slurm, this many at a time; None = run them here, one after another.

    Raises:
        UserError: a setting is wrong, an input is missing, a stage that all runs need failed, or some runs failed
            (raised after the other runs and the report, with the paths of the logs).
    """
    settings = load_experiment(config, overrides)
    if slurm is not None and settings.draws_answers:
        raise UserError(
            "--slurm does not draw answers: draw them with `minordpo evaluate --samples` in a job, then set "
            "prepare.source to its folder; rounds run one after another, without --slurm"
        )
    _check_all(settings, check)
    work = Path(settings.work)
    with _alone(work):
        sweep = _Sweep(settings, Journal(work), Console(highlight=False))
        if slurm is None:
            sweep.run()
        else:
            sweep.prepare_for_slurm()
            submit(settings, limit=slurm)


def _check_all(settings: Experiment, check: Check) -> None:
    """Check every stage's command line; a complaint about several stages is reported once."""
    model = None if settings.is_model_made else Path(settings.model_folder)
    wrong: dict[str, list[str]] = defaultdict(list)  # complaint: stages
    for stage in stages_of(settings):
        if stage.words:
            try:
                check(stage.words, model=model)
            except UserError as error:
                wrong[str(error)].append(stage.name)
    if wrong:
        raise UserError("\n".join(f"stage {_few(names)}: {complaint}" for complaint, names in wrong.items()))


def _few(names: list[str]) -> str:
    return f"{names[0]} and {len(names) - 1} more" if len(names) > 1 else names[0]


@contextmanager
def _alone(work: Path) -> Iterator[None]:
    work.mkdir(parents=True, exist_ok=True)
    lock = FileLock(work / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise UserError(
            f"{work}: another sweep is running in this folder: wait until it ends, or set work=FOLDER"
        ) from None
    try:
        yield
    finally:
        lock.release()


class _Sweep:
    def __init__(self, settings: Experiment, journal: Journal, console: Console) -> None:
        self.settings, self.journal, self.console = settings, journal, console
        self.start = time.monotonic()
        self.failures: dict[str, str] = {}  # run: what happened
        self.seconds: dict[str, list[float]] = defaultdict(list)  # kind of stage: how long each took

    def run(self) -> None:
        stages = stages_of(self.settings)
        self._run_all(stages, total=len(stages) + 1)
        self._report(len(stages) + 1)
        if self.failures:
            count = f"{len(self.failures)} of {len(runs_of(self.settings.sweep))} runs failed:"
            raise UserError("\n".join([count, *self.failures.values()]))

    def prepare_for_slurm(self) -> None:
        """Run the stages that all runs need, except those that run a model."""
        stages = [stage for stage in stages_of(self.settings) if not stage.run and stage.kind not in SUBMITTED]
        self._run_all(stages, total=len(stages))

    def _run_all(self, stages: list[Stage], *, total: int) -> None:
        """Run the stages in order, skipping the rest of a failed run."""
        for number, stage in enumerate(stages, start=1):
            if stage.run not in self.failures:
                self.console.rule(f"[bold]{number}/{total}  {stage.name}")
                self._run(stage, left=stages[number:])

    def _run(self, stage: Stage, *, left: list[Stage]) -> None:
        try:
            seconds = self._done_in(stage)
        except UserError as error:
            if not stage.run:
                raise
            self.failures[stage.run] = str(error)
            self.console.print(f"{error}\n", style="red", markup=False)
            return
        self.seconds[stage.kind].append(self.journal.seconds(stage))
        state = "unchanged, already done" if seconds is None else f"done in {_duration(seconds)}"
        self.console.print(
            f"[bold]{stage.name}[/bold]: {state}; {_duration(time.monotonic() - self.start)} since the start"
            f"{self._time_left(left)}\n"
        )

    def _done_in(self, stage: Stage) -> float | None:
        """Run a stage unless it is already done; seconds, or None if it was."""
        if self.journal.is_done(stage):
            return None
        more = self.journal.make_room(stage)
        self.journal.begin(stage)
        log = Path(self.settings.work) / LOGS / f"{stage.name}.log"
        shown = shlex.join([*(["minordpo", *stage.words] if stage.words else stage.command), *more])
        self.console.print(f"$ {shown}", style="dim", markup=False, soft_wrap=True)
        start = time.monotonic()
        code = run_and_log(stage.command + more, log)
        if code != 0:
            raise UserError(
                f"stage {stage.name} failed with exit code {code}; its log is {log}. "
                "Rerun the sweep to resume from this stage"
            )
        if stage.output is not None and not stage.output.exists():
            raise UserError(f"stage {stage.name} ended without writing {stage.output}; its log is {log}")
        seconds = time.monotonic() - start
        self.journal.end(stage, seconds=seconds)
        return seconds

    def _time_left(self, stages: list[Stage]) -> str:
        """Estimate for the remaining stages; empty until each of their kinds has run once."""
        waiting = [stage for stage in stages if stage.run not in self.failures and not self.journal.is_done(stage)]
        kinds = [stage.kind for stage in waiting]
        if not waiting or not all(kind in self.seconds for kind in kinds):
            return ""
        return f"; about {_duration(sum(median(self.seconds[kind]) for kind in kinds))} left"

    def _report(self, number: int) -> None:
        """Report on all runs that have started, including failed ones."""
        names = run_names(self.settings)
        begun = [name for name in names if (run_folder(self.settings, name) / CONFIG).is_file()]
        if not begun:
            return
        kinds = ("train", "evaluate") if self.settings.score is None else ("train", "evaluate", "score")
        read = [f"{kind}-{name}" for name in begun for kind in kinds]
        stage = report_of(self.settings, begun, ("evaluate-base", *read))
        self.console.rule(f"[bold]{number}/{number}  {stage.name}")
        self._run(stage, left=[])
        self.console.print(f"Report: {stage.output}", markup=False)


def _duration(seconds: float) -> str:
    hours, rest = divmod(int(seconds), 3600)
    minutes, rest = divmod(rest, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{seconds:.0f} s"
