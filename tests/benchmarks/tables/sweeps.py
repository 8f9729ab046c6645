"""Reports of `minordpo sweep`, as written by tests/benchmarks/sweep_results.py: tables by heading."""

import re
from collections.abc import Callable
from typing import Any

from tests.benchmarks.tables.markdown import table

_SETTING = re.compile(r"(?P<loss>\w+), beta (?P<beta>\S+), lr (?P<lr>[^\s,]+)(, seed \d+)?")
_SCORES = "Report"
_REPEATS = 5.0  # percent of the answers


def scores(report: dict[str, Any]) -> str:
    return _columns(
        report,
        {
            "model": "model",
            "strict, % (95 % interval)": "correct, % (95 % interval):",
            "degenerate, %": "degenerate, %:",
            "rewards/chosen": "rewards/chosen:",
            "rewards/rejected": "rewards/rejected:",
            "margin": "margin:",
        },
    )


def scores_with_flexible(report: dict[str, Any]) -> str:
    return _columns(
        report,
        {
            "model": "model",
            "strict, % (95 % interval)": "strict, % (95 % interval):",
            "flexible %": "flexible, %:",
            "degenerate, %": "degenerate, %:",
            "rewards/chosen": "rewards/chosen:",
            "rewards/rejected": "rewards/rejected:",
            "margin": "margin:",
        },
    )


def runs(report: dict[str, Any]) -> str:
    return whole(_SCORES)(report)


def whole(heading: str) -> Callable[[dict[str, Any]], str]:
    """The table under a heading, unchanged."""

    def make(report: dict[str, Any]) -> str:
        part = report["tables"][heading]
        columns = [part["columns"][0], *[f"{name}:" for name in part["columns"][1:]]]
        return table(" | ".join(columns), part["rows"])

    return make


def grid(report: dict[str, Any]) -> str:
    """Strict accuracy of each loss at each learning rate and beta, one number per seed."""
    found: dict[tuple[str, str], dict[str, list[tuple[float, float]]]] = {}
    for named in _rows(report, _SCORES):
        if setting := _SETTING.fullmatch(named["model"]):
            strict = float(named["strict, % (95 % interval)"].split()[0])
            one = (strict, float(named["degenerate, %"]))
            found.setdefault((setting["lr"], setting["beta"]), {}).setdefault(setting["loss"], []).append(one)
    losses = ["dpo", "dpop", "minordpo"]
    rows = [(*setting, *[_seeds(by_loss[loss]) for loss in losses]) for setting, by_loss in found.items()]
    return table("learning rate | beta: | dpo: | dpop: | minordpo:", rows)


def seeds(report: dict[str, Any]) -> str:
    """Scores of settings with several seeds; of the base model, which has none, the interval is over the problems."""
    rows = []
    for named in _rows(report, "Scores"):
        score = named["strict over seeds and problems, % (95 % interval)"]
        score = named["strict, % (95 % interval)"] if score == "-" else score
        rows.append([named["model"], named["seeds"], score, named["degenerate, % (95 % interval)"]])
    return table("model | seeds: | correct, % (95 % interval): | degenerate, %:", rows)


def comparisons(report: dict[str, Any]) -> str:
    """The paired tests of strict accuracy."""
    return _columns(
        report,
        {
            "model": "model",
            "against": "against",
            "difference, points (95 % interval)": "difference, points (95 % interval):",
            "p after Holm's correction": "p, Holm:",
            "at 5 %": "at 5 %",
        },
        heading="Paired tests",
        where=("accuracy", "strict"),
    )


def _seeds(ones: list[tuple[float, float]]) -> str:
    text = ", ".join(f"{strict:.1f}" for strict, _ in ones)
    if max(repeats for _, repeats in ones) < _REPEATS:
        return text
    return f"{text} ({', '.join(f'{repeats:.0f}' for _, repeats in ones)} % repeat themselves)"


def _columns(
    report: dict[str, Any], chosen: dict[str, str], *, heading: str = _SCORES, where: tuple[str, str] | None = None
) -> str:
    """Some columns of a table under new names, and only its rows with a value in a column, if `where` names them."""
    wanted = [row for row in _rows(report, heading) if where is None or row[where[0]] == where[1]]
    return table(" | ".join(chosen.values()), [[row[name] for name in chosen] for row in wanted])


def _rows(report: dict[str, Any], heading: str) -> list[dict[str, str]]:
    """The rows of the table under a heading, by column."""
    part = report["tables"][heading]
    return [dict(zip(part["columns"], row, strict=True)) for row in part["rows"]]
