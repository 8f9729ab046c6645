"""An experiment, from questions to a report: each stage is a command of `minordpo`, run as its own process.

All results lie in one work folder. The journal there says which stages ended well; started again, the sweep repeats
only the stages whose command line has changed, whose output is gone, or that follow such a stage. A run that fails
stops none of the others.

`config.py` is what a YAML may say, `grid.py` the runs that it asks for, `stages.py` the command lines made of it,
`journal.py` what is done already, `process.py` runs one, `slurm.py` hands all of it to a cluster.
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
from nemo_minordpo.sweep.stages import Stage, report_of, run_folder, stages_of

__all__ = ["run_sweep"]


class Check(Protocol):
    """Refuses what is wrong with a command line of `minordpo`, by a UserError."""

    def __call__(self, words: list[str], /, *, model: Path | None) -> None: ...


def run_sweep(config: Path, overrides: list[str], *, check: Check, slurm: int | None = None) -> None:
    """Run the stages that `config` describes, each once, and report on the runs.

    Args:
        config: YAML file, or the name of one that the package ships ("demo", "real", ...).
        overrides: `key=value` over the file, dots for inner keys.
        check: refuses a command line of `minordpo` whose options or settings are wrong, given its words and the
            Hugging Face folder of the model; every stage is asked about before the first one runs.
        slurm: hand the runs to Slurm, so many at a time; None = run them here, one after the other.

    Raises:
        UserError: a setting is wrong, an input is missing, a stage that all runs need failed, or some of the runs did
            (after the others and the report; with the paths of the logs).
    """
    settings = load_experiment(config, overrides)
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
    """Every stage's command line; what is wrong in many of them is said once."""
    model = None if settings.model is None else Path(settings.model)
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
        raise UserError(f"{work}: another sweep is at work in this folder: wait for it, or give work=FOLDER") from None
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
        """What all runs need, but for what takes a model's time."""
        stages = [stage for stage in stages_of(self.settings) if not stage.run and stage.kind not in SUBMITTED]
        self._run_all(stages, total=len(stages))

    def _run_all(self, stages: list[Stage], *, total: int) -> None:
        """But for what follows in a run that has failed."""
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
        state = "unchanged, it was done before" if seconds is None else f"done in {_duration(seconds)}"
        self.console.print(
            f"[bold]{stage.name}[/bold]: {state}; {_duration(time.monotonic() - self.start)} since the start"
            f"{self._time_left(left)}\n"
        )

    def _done_in(self, stage: Stage) -> float | None:
        """Run a stage unless it is done; seconds, or None when it was done before."""
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
                f"stage {stage.name} failed with exit code {code}; what it said is in {log}. "
                "Started again, the sweep resumes from this stage"
            )
        if stage.output is not None and not stage.output.exists():
            raise UserError(f"stage {stage.name} ended without its output {stage.output}; what it said is in {log}")
        seconds = time.monotonic() - start
        self.journal.end(stage, seconds=seconds)
        return seconds

    def _time_left(self, stages: list[Stage]) -> str:
        """As far as stages of each kind have been seen, of those that are left and not done."""
        waiting = [stage for stage in stages if stage.run not in self.failures and not self.journal.is_done(stage)]
        kinds = [stage.kind for stage in waiting]
        if not waiting or not all(kind in self.seconds for kind in kinds):
            return ""
        return f"; about {_duration(sum(median(self.seconds[kind]) for kind in kinds))} left"

    def _report(self, number: int) -> None:
        """On all runs that have started, also on those that failed."""
        names = [run.name for run in runs_of(self.settings.sweep)]
        begun = [name for name in names if (run_folder(self.settings, name) / CONFIG).is_file()]
        if not begun:
            return
        read = [f"{stage}-{name}" for name in begun for stage in ("train", "evaluate")]
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
