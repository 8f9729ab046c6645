"""Run folders and score folders, as far as they were written."""

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from nemo_minordpo.records import Score, StepMetrics, read_lines

REWARDS = ("rewards/chosen", "rewards/rejected", "rewards/margin")
# The end of a run is the mean over this part of its steps: one step's mean over a batch is too noisy to compare.
FINAL_PART = 0.1


@dataclass
class Run:
    """One training run; `notes` says what is missing or strange in it."""

    folder: Path
    loss: str
    beta: float | None
    learning_rate: float | None
    steps: list[StepMetrics]  # training steps in order, each number once
    seconds: float  # sum of step_s, NaN when no step says it
    score: Score | None
    notes: list[str] = field(default_factory=list)
    name: str = ""

    def values(self, name: str) -> list[float]:
        """The value of `name` at each step; NaN where a step does not have it."""
        return [float(step.values.get(name, math.nan)) for step in self.steps]

    def final(self, name: str) -> float:
        """Mean of `name` over the last tenth of the steps (at least one); NaN when one of them is no number."""
        if not self.steps:
            return math.nan
        last = self.values(name)[-max(1, int(len(self.steps) * FINAL_PART)) :]
        return sum(last) / len(last)


def read_run(folder: Path) -> Run:
    """Read `config.yaml`, `metrics.jsonl` and `evaluation/score.json` of a run folder.

    Raises:
        ValueError: `folder` holds no `config.yaml` of a training run, or its score cannot be read.
    """
    config = _read_config(folder / "config.yaml")
    notes: list[str] = []
    lines = _read_metrics(folder / "metrics.jsonl", notes)
    # A run that was stopped and resumed may have written a step twice: what counts is what it went on from.
    steps = {line.step: line for line in sorted(lines, key=lambda line: line.step)}
    if len(steps) < len(lines):
        notes.append(f"{len(lines) - len(steps)} steps were done twice (the run was resumed); the later ones count")
    seconds = [line.values["step_s"] for line in lines if "step_s" in line.values]
    run = Run(
        folder=folder,
        loss=str(_selected(config, "model.dpo.preference_loss")),
        beta=_selected(config, "model.dpo.ref_policy_kl_penalty"),
        learning_rate=_selected(config, "model.optim.lr"),
        steps=list(steps.values()),
        seconds=sum(seconds) if seconds else math.nan,
        score=read_score(folder / "evaluation"),
        notes=notes,
    )
    _note_what_is_missing(run, saves_nemo=_selected(config, "trainer.dpo.save_nemo") is not False)
    return run


def read_score(folder: Path) -> Score | None:
    """`score.json` of a folder; None when there is none.

    Raises:
        ValueError: the file is there, but it is not a score.
    """
    path = folder / "score.json"
    if not path.is_file():
        return None
    try:
        return Score(**json.loads(path.read_text(encoding="utf-8")))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: not a score as `minordpo evaluate` writes it ({error})") from error


def _read_config(path: Path) -> dict:
    if not path.is_file():
        raise ValueError(f"{path.parent}: not a run folder of `minordpo train`: it has no config.yaml")
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not readable as YAML ({error})") from error
    if _selected(config, "model.dpo.preference_loss") is None:
        raise ValueError(f"{path}: no model.dpo.preference_loss: not the config of a training run")
    return config


def _selected(config: Any, key: str) -> Any:
    for name in key.split("."):
        if not isinstance(config, dict):
            return None
        config = config.get(name)
    return config


def _read_metrics(path: Path, notes: list[str]) -> list[StepMetrics]:
    if not path.is_file():
        return []
    lines = []
    for number, text in read_lines(path):
        try:
            lines.append(StepMetrics.from_json(text))
        except (TypeError, ValueError):
            # A run that was killed while it wrote leaves half a line; the other steps are still worth a report.
            notes.append(f"{path}:{number}: not a line of metrics, left out")
    return [line for line in lines if line.split == "train"]


def _note_what_is_missing(run: Run, *, saves_nemo: bool) -> None:
    if not run.steps:
        run.notes.append(f"no training step in {run.folder / 'metrics.jsonl'}")
    elif saves_nemo and not (run.folder / "model.nemo").exists():  # written last
        run.notes.append(f"not finished: it has {run.steps[-1].step} steps and no model.nemo")
    for name in REWARDS:
        strange = [step.step for step in run.steps if not math.isfinite(step.values.get(name, math.nan))]
        if strange:
            run.notes.append(f"{name} is missing or not finite at {len(strange)} steps, first at step {strange[0]}")
    if run.score is None:
        run.notes.append(f"no score: {run.folder / 'evaluation' / 'score.json'} is missing (`minordpo evaluate`)")
