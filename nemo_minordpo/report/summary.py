"""The findings in plain sentences, each computed from the grid alone."""

import math
from collections import Counter

from nemo_minordpo.report.axes import Grid, Setting, number
from nemo_minordpo.report.run_state import COMPLETE

_CHANGES = {"lower": "lower", "higher": "higher", "overlap": "no clear difference: the intervals overlap"}


def summary(grid: Grid) -> list[str]:
    """The sentences that the data support: completeness, rewards, accuracy, what broke, and what is best."""
    sentences = [
        _of_what_is_there(grid),
        _of_rewards(grid),
        _of_accuracy(grid),
        *_of_breaks(grid),
        _of_the_best(grid),
        *_of_the_top(grid),
    ]
    return [sentence for sentence in sentences if sentence]


def _of_what_is_there(grid: Grid) -> str:
    runs = grid.runs
    complete = sum(run.state.is_complete for run in runs)
    scored = sum(run.score is not None for run in runs)
    if not grid.is_sweep or (complete == scored == len(runs) and not grid.left_out):
        return ""
    states = Counter(run.state.word for run in runs if str(run.state) != COMPLETE)
    unread = f"; unreadable folders: {len(grid.left_out)}" if grid.left_out else ""
    others = "".join(f"; {state}: {count}" for state, count in states.most_common())
    there = f"{complete} of {len(runs)} runs are complete{others}; scored: {scored}{unread}"
    return f"The sweep is incomplete: {there}. The findings below cover only the available runs."


def _of_rewards(grid: Grid) -> str:
    sides: dict[str, list[str]] = {"below zero": [], "above zero": [], "at zero": [], "at a non-finite value": []}
    for loss in grid.losses:
        trained = [
            one for one in grid.of(loss) if one.has_reference and any(run.steps and run.is_finished for run in one.runs)
        ]
        for side, parts in sides.items():
            ends = [end for end in (one.final("rewards/chosen") for one in trained) if _side(end) == side]
            if ends:
                parts.append(f"{loss} {_how_many(len(ends), len(trained))}({_range(ends)})")
    parts = [f"{side} for {listed(losses)}" for side, losses in sides.items() if losses]
    return f"rewards/chosen ends {listed(parts)}." if parts else ""


def _of_accuracy(grid: Grid) -> str:
    base = grid.base_rate
    parts = []
    for loss in grid.losses:
        rates = [one.score for one in grid.of(loss) if one.score is not None]
        if base is None or not rates:
            continue
        counts = Counter(rate.against(base) for rate in rates)
        if len(rates) == 1:
            parts.append(f"{loss} {_percent(rates[0].value)} ({_CHANGES[rates[0].against(base)]})")
        else:
            shown = [f"{_CHANGES[change].partition(':')[0]} at {count}" for change, count in counts.most_common()]
            parts.append(f"{loss} {', '.join(shown)} of {len(rates)} settings")
    if base is None or not parts:
        return ""
    return f"Strict accuracy, against the base model's {_percent(base.value)}: {'; '.join(parts)}."


def _of_breaks(grid: Grid) -> list[str]:
    """Where each loss broke, for losses with a score or a break."""
    sentences, whole = [], []
    for loss in grid.losses:
        settings = grid.of(loss)
        known = [one for one in settings if one.breaks or one.score is not None]
        broken = [one for one in known if one.breaks]
        if broken:
            sentences.append(
                f"{loss} broke {_how_many(len(broken), len(known))}".rstrip() + f": {_places(broken, grid)}."
            )
        elif known:
            whole.append(loss if len(known) == len(settings) else f"{loss} ({len(known)} of {len(settings)} scored)")
    if whole:
        against = ", and no accuracy is clearly below the base model's" if grid.base else ""
        sentences.append(f"{listed(whole)} did not break: training stayed finite, answers did not degenerate{against}.")
    return sentences


def _places(broken: list[Setting], grid: Grid) -> str:
    """Where and how a loss broke; settings that broke the same way at one learning rate are grouped."""
    if len(grid.of(broken[0].loss)) == 1:
        return ", ".join(broken[0].breaks)
    alike: dict[tuple[str, str], list[str]] = {}
    for one in broken:
        alike.setdefault((number(one.learning_rate), ", ".join(one.breaks)), []).append(number(one.beta))
    return "; ".join(f"lr {rate}, beta {listed(betas)} ({reasons})" for (rate, reasons), betas in alike.items())


def _of_the_best(grid: Grid) -> str:
    """At how many settings each loss is the best, and at how many of them clearly."""
    compared = [settings for settings in grid.scored().values() if len(settings) > 1]
    if not compared:
        return ""
    if len(compared) == 1:
        best, second = compared[0][:2]
        if len(alike := best_of(compared[0])) > 1:
            return f"{listed([one.loss for one in alike])} are tied at {best.score}."
        return f"The best is {best.loss}, {best.score}; {_apart(best, second)}."
    wins = Counter(settings[0].loss for settings in compared if len(best_of(settings)) == 1)
    clear = Counter(settings[0].loss for settings in compared if is_apart(settings[0], settings[1]))
    parts = [
        f"{loss} at {count} of {len(compared)} settings (clearly at {clear[loss]})"
        for loss, count in wins.most_common()
    ]
    if alike := len(compared) - wins.total():
        parts.append(f"a tie at {alike}")
    missing = {loss: sum(loss not in [one.loss for one in settings] for settings in compared) for loss in grid.losses}
    absent = ", ".join(f"{loss} at {count}" for loss, count in missing.items() if count)
    without = f"; without a score: {absent}" if absent else ""
    return f"Compared at the same beta and learning rate, the best is {listed(parts)}{without}."


def _of_the_top(grid: Grid) -> list[str]:
    """The best setting at each learning rate, compared with the best of the other losses."""
    sentences = []
    for rate in grid.learning_rates if grid.is_sweep else []:
        tops = tops_of(grid, rate)
        if len(tops) > 1:
            best, second = tops[:2]
            if len(alike := best_of(tops)) > 1:
                those = listed([f"{one.loss} at beta {number(one.beta)}" for one in alike])
                sentences.append(f"lr {number(rate)}: {those} share the top score, {best.score}.")
                continue
            sentences.append(
                f"lr {number(rate)}: {best.loss} at beta {number(best.beta)} has the top score, {best.score}; "
                f"{_apart(best, second, where=f' at beta {number(second.beta)}')}."
            )
    return sentences


def tops_of(grid: Grid, learning_rate: float | None) -> list[Setting]:
    """Each loss's best setting at a learning rate, best loss first."""
    scored = [one for one in grid.settings if one.score is not None and one.learning_rate == learning_rate]
    tops = [max((one for one in scored if one.loss == loss), key=_value) for loss in {one.loss for one in scored}]
    return sorted(tops, key=lambda one: (-_value(one), grid.losses.index(one.loss)))


def best_of(settings: list[Setting]) -> list[Setting]:
    """The leading setting, or all that share the highest score; `settings` must be sorted best first."""
    return [one for one in settings if _value(one) == _value(settings[0])]


def is_apart(first: Setting, second: Setting) -> bool:
    """Whether the intervals of the two scores are disjoint."""
    return first.score is not None and second.score is not None and first.score.against(second.score) != "overlap"


def listed(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def _apart(best: Setting, second: Setting, where: str = "") -> str:
    relation = "does not overlap" if is_apart(best, second) else "overlaps"
    return f"its interval {relation} that of the runner-up, {second.loss}{where}, {second.score}"


def _value(setting: Setting) -> float:
    return setting.score.value if setting.score else -math.inf


def _side(value: float) -> str:
    if not math.isfinite(value):
        return "at a non-finite value"
    return "at zero" if value == 0 else "above zero" if value > 0 else "below zero"


def _how_many(count: int, total: int) -> str:
    if total == 1:
        return ""
    return f"at all {total} settings " if count == total else f"at {count} of {total} settings "


def _range(values: list[float]) -> str:
    low, high = min(values), max(values)
    return f"{low:+.3g} to {high:+.3g}" if low < high else f"{values[0]:+.3g}"


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.1f} %"
