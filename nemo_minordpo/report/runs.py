"""Read run folders and score folders, complete or not."""

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from nemo_minordpo import file_names
from nemo_minordpo.checked_json import checked_number
from nemo_minordpo.config import LOSS_KEY, loss_label, losses_in
from nemo_minordpo.errors import UserError
from nemo_minordpo.flat import flatten
from nemo_minordpo.records import OF_LOG_RATIOS, Score, StepMetrics, score_from_json
from nemo_minordpo.report.answers import Answers, read_answers
from nemo_minordpo.report.run_state import State, read_state
from nemo_minordpo.report.scored_pairs import ScoredPairs, read_scored_pairs

REWARDS = ("rewards/chosen", "rewards/rejected", "rewards/margin")
# A metric's final value is its mean over this fraction of the steps: a single batch is too noisy to compare.
FINAL_PART = 0.1
TRAIN = "train"


@dataclass
class Run:
    """One training run; `notes` lists what is missing or odd."""

    folder: Path
    loss: str  # "minordpo"; of a mix "minordpo + 0.1 sft"
    losses: tuple[str, ...]  # the losses in it
    beta: float | None
    learning_rate: float | None
    seed: int | None
    settings: dict[str, Any]  # the whole config.yaml, flattened
    lines: dict[str, list[StepMetrics]]  # split -> its lines by step, each step once
    seconds: float  # duration of all training steps, including repeated ones; NaN if no step logged it
    score: Score | None
    state: State
    answers: Answers | None = None  # one to each question of the score
    scored_pairs: ScoredPairs = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)  # the parts of its files that could not be read
    notes: list[str] = field(default_factory=list)
    name: str = ""

    @property
    def steps(self) -> list[StepMetrics]:
        return self.lines.get(TRAIN, [])

    @property
    def has_reference(self) -> bool:
        """Whether rewards are log-ratios, see StepMetrics."""
        first = next((step for step in self.steps if "logps/chosen" in step.values), None)
        return first is None or first.has_reference

    @property
    def is_finished(self) -> bool:
        """Whether it was trained to the end; assumed if the folder has no record of its state."""
        return self.state.is_complete or not self.state.is_known

    @property
    def metrics(self) -> list[str]:
        """Every logged name; splits other than training are prefixed: `validation/loss`."""
        names = (
            name if split == TRAIN else f"{split}/{name}"
            for split, lines in self.lines.items()
            for line in lines
            for name in line.values
        )
        return list(dict.fromkeys(names))

    def recorded(self, metric: str) -> list[tuple[int, float]]:
        """(step, value) wherever the metric was logged."""
        split, _, name = metric.partition("/")
        if split == TRAIN or split not in self.lines:
            split, name = TRAIN, metric
        return [(line.step, line.values[name]) for line in self.lines.get(split, []) if name in line.values]

    def values(self, name: str) -> list[float]:
        """The value of `name` at each training step; NaN where it is missing."""
        return [float(step.values.get(name, math.nan)) for step in self.steps]

    def final(self, metric: str) -> float:
        """The metric's final value; NaN if it was not logged there, is not a number, or lacks its reference.

        Training: the mean over the last tenth of the steps (at least one); other splits: their last line.
        """
        split, _, name = metric.partition("/")
        is_training = split == TRAIN or split not in self.lines
        if (metric if is_training else name).startswith(OF_LOG_RATIOS) and not self.has_reference:
            return math.nan
        if not is_training:
            return self.lines[split][-1].values.get(name, math.nan)
        if not self.steps:
            return math.nan
        last = self.values(metric)[-max(1, int(len(self.steps) * FINAL_PART)) :]
        return sum(last) / len(last)


def read_run(folder: Path) -> Run:
    """Read `config.yaml`, `metrics.jsonl`, `events.jsonl` and `evaluation/score.json` of a run folder.

    Raises:
        ValueError: `folder` has no `config.yaml` of a training run. Anything else damaged or missing becomes a note.
    """
    settings = flatten(_read_config(folder / file_names.CONFIG))
    notes: list[str] = []
    state = read_state(folder)
    left_out = list(state.left_out)
    lines, seconds = _read_metrics(folder / file_names.METRICS, notes=notes, left_out=left_out)
    notes += left_out
    seed, weights = settings.get("model.seed"), losses_in(settings)
    score, answers = _score_and_answers(folder / file_names.EVALUATION, notes)
    run = Run(
        folder=folder,
        loss=loss_label(weights),
        losses=tuple(weights),
        beta=_number(settings, "model.dpo.ref_policy_kl_penalty", notes),
        learning_rate=_number(settings, "model.optim.lr", notes),
        seed=seed if isinstance(seed, int) else None,
        settings=settings,
        lines=lines,
        seconds=seconds,
        score=score,
        state=state,
        answers=answers,
        scored_pairs=read_scored_pairs(folder / file_names.SCORED_PAIRS, notes),
        left_out=left_out,
        notes=notes,
    )
    _note_what_is_missing(run, saves_nemo=settings.get("trainer.dpo.save_nemo") is not False)
    return run


def read_score(folder: Path) -> Score | None:
    """A folder's `score.json`; None if there is none.

    Raises:
        ValueError: the file exists but is not a score.
    """
    path = folder / file_names.SCORE
    if not path.is_file():
        return None
    try:
        score = score_from_json(path.read_text(encoding="utf-8"))
        for number in (*score.strict_interval_95, *score.flexible_interval_95, score.mean_tokens):
            checked_number(number, "an interval or mean_tokens")
        for low, value, high in (
            (score.strict_interval_95[0], score.strict_accuracy, score.strict_interval_95[1]),
            (score.flexible_interval_95[0], score.flexible_accuracy, score.flexible_interval_95[1]),
            (0, score.degenerate_rate, 1),
            (0, score.no_answer_rate, 1),
            (0, score.unfinished_rate, 1),
            (1, score.num_questions, math.inf),
        ):
            if not 0 <= low <= value <= high:
                raise UserError(f"{value} is not between {low} and {high}")
        return score
    except (TypeError, ValueError, IndexError, KeyError) as error:
        raise UserError(f"{path}: not a score as `minordpo evaluate` writes it ({error})") from error


def answers_or_note(folder: Path, score: Score, notes: list[str]) -> Answers | None:
    """The answers behind a score; why they cannot be read becomes a note."""
    try:
        return read_answers(folder, score)
    except (UserError, OSError) as error:
        notes.append(f"not in the paired tests: {error}")
        return None


def _score_and_answers(folder: Path, notes: list[str]) -> tuple[Score | None, Answers | None]:
    try:
        score = read_score(folder)
    except UserError as error:
        notes.append(str(error))
        return None, None
    return score, None if score is None else answers_or_note(folder, score, notes)


def _read_config(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise UserError(f"{path.parent}: not a run folder of `minordpo train`: it has no {path.name}")
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
        json.dumps(config, default=str, ensure_ascii=False).encode()  # half a surrogate pair cannot be printed
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # not UTF-8, number too long, nesting too deep
        raise UserError(f"{path}: not readable as YAML ({' '.join(str(error).split())})") from error
    if not isinstance(config, dict) or not losses_in(flatten(config)):
        raise UserError(f"{path}: not the config of a training run: it has no {LOSS_KEY}")
    return config


def _number(settings: dict[str, Any], key: str, notes: list[str]) -> float | None:
    try:
        number = float(settings[key])
    except (KeyError, TypeError, ValueError, OverflowError):
        number = math.nan
    if math.isfinite(number):
        return number
    notes.append(f"{file_names.CONFIG}: {key} is not a number but {settings.get(key)!r}")
    return None


def _read_metrics(path: Path, *, notes: list[str], left_out: list[str]) -> tuple[dict[str, list[StepMetrics]], float]:
    """The lines of each split, each step once; and the duration of all training steps in seconds."""
    found: dict[str, dict[int, StepMetrics]] = {TRAIN: {}}
    twice, seconds = 0, math.nan
    for number, text in enumerate(path.read_bytes().split(b"\n") if path.is_file() else [], start=1):
        if not text.strip():
            continue
        try:
            line = _sound(StepMetrics.from_json(text.decode()))
        except (TypeError, ValueError, OverflowError):
            # A run killed in the middle of a write leaves half a line; the other steps are still worth reporting.
            left_out.append(f"{path}:{number}: not a line of metrics, left out")
            continue
        of_split = found.setdefault(line.split, {})
        # A run that was stopped and resumed may have written a step twice: training continued from the later one.
        twice += line.split == TRAIN and line.step in of_split
        of_split[line.step] = line
        if line.split == TRAIN and math.isfinite(line.values.get("step_s", math.nan)):
            seconds = line.values["step_s"] + (0 if math.isnan(seconds) else seconds)
    if twice:
        notes.append(f"{twice} steps were done twice (the run was resumed); only the later ones count")
    return {split: [lines[step] for step in sorted(lines)] for split, lines in found.items()}, seconds


def _sound(line: StepMetrics) -> StepMetrics:
    """The line, reduced to the values that are numbers.

    Raises:
        UserError, OverflowError: its step is invalid, or it has a number that no float can hold.
    """
    values = {name: float(value) for name, value in line.values.items() if isinstance(value, int | float)}
    first = 0 if line.split == "watch" else 1  # answers are also sampled before the first step
    if line.step < first:
        raise UserError(f"step {line.step!r}")
    return StepMetrics(
        split=line.split, step=line.step, epoch=line.epoch, consumed_pairs=line.consumed_pairs, values=values
    )


def _note_what_is_missing(run: Run, *, saves_nemo: bool) -> None:
    of_all = f" of {run.state.max_steps}" if run.state.max_steps else ""
    happened = f"; {run.state}" if run.state.is_known else ""
    if not run.steps:
        run.notes.append(f"no training step in {run.folder / file_names.METRICS}{happened}")
    elif not run.state.is_complete and (saves_nemo or run.state.is_known):
        run.notes.append(f"not finished: it has {run.steps[-1].step}{of_all} steps and no {file_names.NEMO}{happened}")
    for name in REWARDS:
        strange = [step.step for step in run.steps if not math.isfinite(step.values.get(name, math.nan))]
        if strange:
            run.notes.append(f"{name} is missing or not finite at {len(strange)} steps, first at step {strange[0]}")
    score = run.folder / file_names.EVALUATION / file_names.SCORE
    if not score.is_file():
        run.notes.append(f"no score: {score} is missing (`minordpo evaluate`)")
