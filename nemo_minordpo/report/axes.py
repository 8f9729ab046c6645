"""Group runs into settings: a setting is a loss, a beta and a learning rate; its runs differ only in the seed."""

import math
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from nemo_minordpo.config import Resume, declared, default_of, reads, short_name
from nemo_minordpo.records import SampledScore, Score
from nemo_minordpo.report.answers import Answers
from nemo_minordpo.report.runs import Run
from nemo_minordpo.report.scores import BELOW_BASE, DEGENERATE, Rate, broke, over_seeds, strict

Place = tuple[float | None, float | None]  # learning rate, beta
_ROUND = "exp_manager.round"


@dataclass(frozen=True, kw_only=True)
class Setting:
    """The runs of one loss, beta and learning rate, ordered by seed."""

    name: str
    loss: str  # with any other setting that distinguishes it: "dpop (dpop_lambda 5)"
    beta: float | None
    learning_rate: float | None
    runs: list[Run]
    score: Rate | None  # strict accuracy over the seeds
    breaks: list[str]  # how it broke; empty = it has not, as far as it was trained and scored

    @property
    def place(self) -> Place:
        return self.learning_rate, self.beta

    @property
    def is_degenerate(self) -> bool:
        return any(reason.startswith(DEGENERATE) for reason in self.breaks)

    @property
    def has_reference(self) -> bool:
        return all(run.has_reference for run in self.runs)

    @property
    def scores(self) -> list[Score]:
        return [run.score for run in self.runs if run.score is not None]

    def final(self, metric: str) -> float:
        """Mean final value of a metric over the finished seeds; NaN if there are none, or one ended at NaN."""
        finals = [run.final(metric) for run in self.runs if run.steps and run.is_finished]
        return sum(finals) / len(finals) if finals else math.nan


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Every setting of the report, by loss (in the order given), learning rate and beta."""

    settings: list[Setting]
    base: Score | None
    notes: list[str]
    left_out: list[str]  # folders without a readable run, each with the reason
    base_answers: Answers | None = None

    @property
    def runs(self) -> list[Run]:
        return [run for setting in self.settings for run in setting.runs]

    @property
    def losses(self) -> list[str]:
        return list(dict.fromkeys(setting.loss for setting in self.settings))

    @property
    def learning_rates(self) -> list[float | None]:
        return _in_order(setting.learning_rate for setting in self.settings)

    @property
    def betas(self) -> list[float | None]:
        return _in_order(setting.beta for setting in self.settings)

    @property
    def base_rate(self) -> Rate | None:
        return None if self.base is None else strict(self.base)

    @property
    def is_sweep(self) -> bool:
        """Whether some loss was trained at more than one setting."""
        return len(self.settings) > len(self.losses)

    def of(self, loss: str) -> list[Setting]:
        return [setting for setting in self.settings if setting.loss == loss]

    def rows(self) -> dict[tuple[str, float | None], list[Setting]]:
        """(loss, learning rate) -> its settings by ascending beta."""
        rows: dict[tuple[str, float | None], list[Setting]] = {}
        for setting in self.settings:
            rows.setdefault((setting.loss, setting.learning_rate), []).append(setting)
        return rows

    def places(self) -> dict[Place, list[Setting]]:
        """The settings at each learning rate and beta, in the order of the losses."""
        places: dict[Place, list[Setting]] = {}
        for setting in self.settings:
            places.setdefault(setting.place, []).append(setting)
        return dict(sorted(places.items(), key=lambda item: [_none_last(value) for value in item[0]]))

    def scored(self) -> dict[Place, list[Setting]]:
        """The scored settings at each learning rate and beta, best first."""
        scored = {
            place: sorted((one for one in settings if one.score), key=lambda one: -one.score.value if one.score else 0)
            for place, settings in self.places().items()
        }
        return {place: settings for place, settings in scored.items() if settings}


def arrange(
    runs: list[Run], base: Score | None, left_out: list[str] | None = None, base_answers: Answers | None = None
) -> Grid:
    """Group runs into settings and name both; anything that makes a comparison unfair becomes a note."""
    notes: list[str] = []
    labels = _labels(runs)
    order = list(dict.fromkeys(labels[id(run)] for run in runs))
    places: dict[tuple[str, float | None, float | None], list[Run]] = {}
    for run in runs:
        places.setdefault((labels[id(run)], run.learning_rate, run.beta), []).append(run)
    keys = sorted(places, key=lambda key: (order.index(key[0]), _none_last(key[1]), _none_last(key[2])))
    settings_of = Counter(loss for loss, _, _ in keys)
    settings = []
    for loss, rate, beta in keys:
        name = loss if settings_of[loss] == 1 else f"{loss}, beta {number(beta)}, lr {number(rate)}"
        members = sorted(places[loss, rate, beta], key=lambda run: _none_last(run.seed))
        _name_runs(name, members, notes)
        settings.append(_setting(name, loss=loss, runs=members, base=base))
    notes += _unlike_settings(labels, runs) + _unlike_questions(runs, base) + _unlike_answers(runs, base)
    return Grid(settings=settings, base=base, notes=notes, left_out=left_out or [], base_answers=base_answers)


def _setting(name: str, *, loss: str, runs: list[Run], base: Score | None) -> Setting:
    score = over_seeds(strict, [run.score for run in runs if run.score is not None])
    counts = Counter(reason for run in runs for reason in broke(run, base))
    of_all = f" in {{}} of {len(runs)} seeds" if len(runs) > 1 else ""
    breaks = [reason + of_all.format(count) for reason, count in counts.items()]
    if score is not None and base is not None and score.against(strict(base)) == "lower":
        breaks.append(BELOW_BASE)
    first = runs[0]
    return Setting(
        name=name, loss=loss, beta=first.beta, learning_rate=first.learning_rate, runs=runs, score=score, breaks=breaks
    )


def _labels(runs: list[Run]) -> dict[int, str]:
    """id(run) -> its loss, plus any settings other than beta, learning rate and seed in which its runs differ."""
    labels = {}
    for loss in dict.fromkeys(run.loss for run in runs):
        members = [run for run in runs if run.loss == loss]
        differing = _differing(members)
        for run in members:
            more = ", ".join(f"{short_name(key)} {_value(run, key)}" for key in differing)
            labels[id(run)] = f"{loss} ({more})" if more else loss
    return labels


def _differing(runs: list[Run]) -> list[str]:
    """The distinguishing settings that differ between runs whose losses read them, or that make another loss of one.

    Every round has its own models and pairs, so the number of the round says enough.
    """
    keys = dict.fromkeys(key for run in runs for key in run.settings)
    found = [key for key in keys if _tells_apart(key) and len(_values_of(key, runs)) > 1]
    return [key for key in found if _ROUND not in found or not _is_input(key)]


def _is_input(key: str) -> bool:
    setting = declared(key)
    return setting is not None and setting.resume is Resume.SAME_CONTENTS


def _values_of(key: str, runs: list[Run]) -> set[str]:
    """The values of a setting in the runs whose losses read it, and the default of one that makes another loss."""
    values = {str(_value(run, key)) for run in runs if reads(run.losses, key)}
    return values | {str(default_of(key))} if values and _is_variant(key) else values


def _value(run: Run, key: str) -> Any:
    """A setting of a run; the default of one that makes another loss, if the run's version did not have it."""
    return run.settings.get(key, default_of(key) if _is_variant(key) else None)


def _is_variant(key: str) -> bool:
    setting = declared(key)
    return setting is not None and setting.is_variant


def _tells_apart(key: str) -> bool:
    """Whether a setting affects what a run computes and is not an axis of the sweep.

    Models and pairs are compared by path: two spellings of one path only make names longer.
    """
    setting = declared(key)
    return setting is None or not (setting.axis or setting.resume is Resume.FREE)


def _name_runs(name: str, runs: list[Run], notes: list[str]) -> None:
    seeds = [run.seed for run in runs]
    for run in runs:
        if len(runs) == 1:
            run.name = name
        elif seeds.count(run.seed) == 1:
            run.name = f"{name}, seed {run.seed}"
        else:
            run.name = f"{name} ({run.folder})"
    if len(set(seeds)) < len(seeds):
        notes.append(f"{name}: several runs have the same settings and the same seed; each counts as a separate seed")


def _unlike_settings(labels: dict[int, str], runs: list[Run]) -> list[str]:
    """Other settings in which the losses differ; differences within one loss are in its label."""
    named = {key for loss in {run.loss for run in runs} for key in _differing([r for r in runs if r.loss == loss])}
    return [
        f"the losses also differ in {key}: "
        + ", ".join(dict.fromkeys(f"{labels[id(run)]} {_value(run, key)}" for run in runs))
        for key in _differing(runs)
        if key not in named
    ]


def _unlike_questions(runs: list[Run], base: Score | None) -> list[str]:
    asked = _grouped(runs, base, lambda score: f"{score.num_questions} of {score.questions}")
    return [f"the scores are not on the same questions: {asked}"] if asked else []


def _unlike_answers(runs: list[Run], base: Score | None) -> list[str]:
    answered = _grouped(runs, base, _how_answered)
    return [f"the answers were not chosen in the same way: {answered}"] if answered else []


def _how_answered(score: Score) -> str:
    if not isinstance(score, SampledScore):
        return "greedy"
    return f"{score.num_samples} drawn at temperature {score.temperature:g}, top-p {score.top_p:g}"


def _grouped(runs: list[Run], base: Score | None, kind: Callable[[Score], str]) -> str:
    """Which scores are of which kind; empty if all are of one."""
    scores = [("base", base)] * (base is not None) + [(run.name, run.score) for run in runs]
    found: dict[str, list[str]] = {}
    for name, score in scores:
        if score is not None:
            found.setdefault(kind(score), []).append(name)
    return "; ".join(f"{of_kind}: {_some(names)}" for of_kind, names in found.items()) if len(found) > 1 else ""


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _in_order(values: Iterable[float | None]) -> list[float | None]:
    return sorted(set(values), key=_none_last)


def _none_last(value: float | None) -> tuple[bool, float]:
    return value is None, 0.0 if value is None else value


def number(value: float | None) -> str:
    return "unknown" if value is None else f"{value:g}"
