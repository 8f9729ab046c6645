"""The problems on which models differ: the base model and every loss, at one learning rate and beta."""

from collections import Counter
from dataclasses import dataclass

from nemo_minordpo.records import Prediction
from nemo_minordpo.report.answers import FLEXIBLE, STRICT, Answers, Problem, common_problems
from nemo_minordpo.report.axes import Grid, number
from nemo_minordpo.report.table import BASE

MOST_PROBLEMS = 8  # shown at each learning rate and beta
RIGHT, OTHER_FORMAT, WRONG = "right", "right, but not in the requested format", "wrong"
Outcome = tuple[str, ...]  # one state per model


@dataclass(frozen=True, kw_only=True)
class Shown:
    """A problem and each model's answer to it, in the order of the models."""

    problem: Problem
    predictions: list[Prediction]
    outcome: Outcome


@dataclass(frozen=True, kw_only=True)
class Differing:
    """How models differ at one learning rate and beta, and some of the problems."""

    name: str
    models: list[str]
    num_problems: int
    outcomes: Counter[Outcome]  # of the problems whose state is not the same for all models
    shown: list[Shown]


def differing(grid: Grid) -> list[Differing]:
    """Each learning rate and beta where two models or more answered the same problems, one run per setting."""
    found = []
    for (rate, beta), settings in grid.places().items():
        answers = {BASE: grid.base_answers} if grid.base_answers else {}
        for setting in settings:
            run = next((run for run in setting.runs if run.answers is not None), None)
            if run is not None and run.answers is not None:
                seed = f" (seed {run.seed})" if len(setting.runs) > 1 else ""
                answers[f"{setting.loss}{seed}"] = run.answers
        if len(answers) > 1:
            found.append(_differing(f"lr {number(rate)}, beta {number(beta)}", answers))
    return found


def _differing(name: str, answers: dict[str, Answers]) -> Differing:
    problems = common_problems(list(answers.values()))
    outcomes = {problem: tuple(_state(one, problem) for one in answers.values()) for problem in problems}
    different = {problem: outcome for problem, outcome in outcomes.items() if len(set(outcome)) > 1}
    shown = [
        Shown(
            problem=problem, outcome=different[problem],
            predictions=[one.predictions[problem] for one in answers.values()],
        )
        for problem in _chosen(different)
    ]  # fmt: skip
    return Differing(
        name=name, models=list(answers), num_problems=len(problems), outcomes=Counter(different.values()), shown=shown
    )


def _state(answers: Answers, problem: Problem) -> str:
    if answers.right[STRICT][problem]:
        return RIGHT
    return OTHER_FORMAT if answers.right[FLEXIBLE][problem] else WRONG


def _chosen(different: dict[Problem, Outcome]) -> list[Problem]:
    """At most MOST_PROBLEMS: the first of every outcome, the commonest outcome first, then the second of each, ..."""
    of_outcome: dict[Outcome, list[Problem]] = {}
    for problem, outcome in different.items():
        of_outcome.setdefault(outcome, []).append(problem)
    groups = sorted(of_outcome.values(), key=lambda group: (-len(group), group[0]))
    turns = [(turn, place) for place, group in enumerate(groups) for turn in range(len(group))]
    return [groups[place][turn] for turn, place in sorted(turns)[:MOST_PROBLEMS]]
