"""Check the paper's claims about DPO, DPOP and MinorDPO (sections 3.2, 3.3 and 4) against the report's runs.

seen: the runs show it, and scores that are compared have disjoint intervals; not seen: they do not show it, or show
the opposite; unclear: the intervals overlap; not tested: the runs that would show it are missing.
"""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

from nemo_minordpo.report.axes import Grid, Setting, number
from nemo_minordpo.report.summary import is_apart, listed, tops_of

SEEN, NOT_SEEN, UNCLEAR, NOT_TESTED = "seen", "not seen", "unclear", "not tested"
_DPO, _DPOP, _MINORDPO = "dpo", "dpop", "minordpo"


@dataclass(frozen=True, kw_only=True)
class Claim:
    text: str
    verdict: str
    numbers: str


def claims(grid: Grid) -> list[Claim]:
    """Every claim with its verdict; empty unless the report is of a sweep."""
    if not grid.is_sweep:
        return []
    return [Claim(text=text, verdict=verdict, numbers=said) for text, (verdict, said) in _judged(grid).items()]


def _judged(grid: Grid) -> dict[str, tuple[str, str]]:
    return {
        "DPO: rewards/chosen and rewards/rejected both end below zero": _ends(
            grid, _DPO, ("rewards/chosen", "rewards/rejected"), lambda end: end < 0
        ),
        "MinorDPO: rewards/chosen ends above zero": _ends(grid, _MINORDPO, ("rewards/chosen",), lambda end: end > 0),
        "DPO: the higher the beta, the lower the margin": _margin_by_beta(grid),
        "DPO: a higher learning rate gives a higher margin": _margin_by_learning_rate(grid),
        "DPO loses at every setting": _loses_everywhere(grid),
        "MinorDPO wins at most settings": _wins_mostly(grid),
        "MinorDPO has the top score at each learning rate": _tops_everywhere(grid),
        "DPO gets worse as beta gets smaller": _worse_with_smaller_beta(grid),
        "DPO degenerates at the highest learning rate and the smallest beta": _degenerates(grid),
        "MinorDPO tolerates the highest learning rate": _accepts(grid, _MINORDPO),
        "DPOP tolerates the highest learning rate, except at the smallest beta": _dpop_but_smallest(grid),
    }


def _nothing(what: str) -> tuple[str, str]:
    return NOT_TESTED, what


def _ends(grid: Grid, loss: str, metrics: tuple[str, ...], holds: Callable[[float], bool]) -> tuple[str, str]:
    settings = [one for one in grid.of(loss) if not math.isnan(sum(one.final(metric) for metric in metrics))]
    if not settings:
        return _nothing(f"no {loss} run with these rewards")
    those = [one for one in settings if all(holds(one.final(metric)) for metric in metrics)]
    values = [one.final(metrics[0]) for one in settings]
    said = f"at {len(those)} of {len(settings)} settings; {metrics[0]} {min(values):+.3g} to {max(values):+.3g}"
    return (SEEN if len(those) == len(settings) else NOT_SEEN), said


def _margin_by_beta(grid: Grid) -> tuple[str, str]:
    """At each learning rate, the margin falls with every increase of beta."""
    falls, parts = [], []
    for (loss, rate), settings in grid.rows().items():
        margins = [one.final("rewards/margin") for one in settings]
        if loss != _DPO or len(settings) < 2 or any(math.isnan(margin) for margin in margins):
            continue
        falls.append(all(left > right for left, right in itertools.pairwise(margins)))
        shown = ", ".join(f"{m:+.3g} at {number(one.beta)}" for m, one in zip(margins, settings, strict=True))
        parts.append(f"lr {number(rate)}: {shown}")
    if not falls:
        return _nothing("dpo was not trained with two betas at one learning rate")
    return (SEEN if all(falls) else NOT_SEEN), "; ".join(parts)


def _margin_by_learning_rate(grid: Grid) -> tuple[str, str]:
    by_beta = {
        beta: [one for one in grid.of(_DPO) if one.beta == beta and not math.isnan(one.final("rewards/margin"))]
        for beta in grid.betas
    }
    pairs = [(found[0], found[-1]) for found in by_beta.values() if len(found) > 1]
    if not pairs:
        return _nothing("dpo was not trained with two learning rates at one beta")
    higher = [pair for pair in pairs if pair[1].final("rewards/margin") > pair[0].final("rewards/margin")]
    return (SEEN if len(higher) == len(pairs) else NOT_SEEN), f"at {len(higher)} of {len(pairs)} betas"


def _compared(grid: Grid, loss: str) -> list[tuple[Setting, Setting]]:
    """This loss and the best of the others, at each beta and learning rate with more than one loss."""
    pairs = []
    for settings in grid.scored().values():
        own = next((one for one in settings if one.loss == loss), None)
        others = [one for one in settings if one.loss != loss]
        if own is not None and others:
            pairs.append((own, others[0]))
    return pairs


def _against(pairs: list[tuple[Setting, Setting]]) -> dict[str, int]:
    relations = [own.score.against(other.score) for own, other in pairs if own.score and other.score]
    return {relation: relations.count(relation) for relation in ("lower", "overlap", "higher")}


def _loses_everywhere(grid: Grid) -> tuple[str, str]:
    counts = _against(_compared(grid, _DPO))
    total = sum(counts.values())
    if not total:
        return _nothing("dpo and another loss were not scored at the same setting")
    said = (
        f"clearly below the best other loss at {counts['lower']} of {total} settings, "
        f"clearly above at {counts['higher']}"
    )
    if counts["lower"] == total:
        return SEEN, said
    return (NOT_SEEN if counts["higher"] else UNCLEAR), said


def _wins_mostly(grid: Grid) -> tuple[str, str]:
    pairs = _compared(grid, _MINORDPO)
    if not pairs:
        return _nothing("minordpo and another loss were not scored at the same setting")
    ahead = sum(own.score.value > other.score.value for own, other in pairs if own.score and other.score)
    clear = _against(pairs)["higher"]
    said = f"best at {ahead} of {len(pairs)} settings, clearly best at {clear}"
    if ahead <= len(pairs) / 2:
        return NOT_SEEN, said
    return (SEEN if clear > len(pairs) / 2 else UNCLEAR), said


def _tops_everywhere(grid: Grid) -> tuple[str, str]:
    verdicts, parts = [], []
    for rate in grid.learning_rates:
        tops = tops_of(grid, rate)
        if len(tops) < 2 or _MINORDPO not in [top.loss for top in tops]:
            continue
        best, second = tops[:2]
        own = next(top for top in tops if top.loss == _MINORDPO)
        # two that share the top score may come in either order: their intervals overlap
        if best is own:
            verdicts.append(SEEN if is_apart(best, second) else UNCLEAR)
        else:
            verdicts.append(NOT_SEEN if is_apart(best, own) else UNCLEAR)
        parts.append(f"lr {number(rate)}: " + ", ".join(f"{top.loss} {top.score}" for top in tops))
    if not verdicts:
        return _nothing("minordpo and another loss were not scored at the same learning rate")
    return _worst(verdicts), "; ".join(parts)


def _worse_with_smaller_beta(grid: Grid) -> tuple[str, str]:
    """At each learning rate, the smallest beta scores clearly below the largest."""
    verdicts, parts = [], []
    for (loss, rate), settings in grid.rows().items():
        scored = [one for one in settings if one.score is not None]
        if loss != _DPO or len(scored) < 2:
            continue
        smallest, largest = scored[0], scored[-1]
        assert smallest.score is not None
        assert largest.score is not None
        verdicts.append({"lower": SEEN, "overlap": UNCLEAR, "higher": NOT_SEEN}[smallest.score.against(largest.score)])
        ends = (f"{one.score} at {number(one.beta)}" for one in (smallest, largest))
        parts.append(f"lr {number(rate)}: {', '.join(ends)}")
    if not verdicts:
        return _nothing("dpo was not scored with two betas at one learning rate")
    return _worst(verdicts), "; ".join(parts)


def _at_highest_rate(grid: Grid, loss: str) -> list[Setting]:
    """The scored settings of a loss at the highest of several learning rates, by ascending beta."""
    rates = [rate for rate in grid.learning_rates if rate is not None]
    if len(rates) < 2:
        return []
    return [one for one in grid.of(loss) if one.learning_rate == rates[-1] and one.score is not None]


def _degenerates(grid: Grid) -> tuple[str, str]:
    settings = _at_highest_rate(grid, _DPO)
    if not settings:
        return _nothing("dpo was not scored at the higher of two learning rates")
    parts = [
        f"{100 * max(score.degenerate_rate for score in one.scores):.1f} % of the answers at beta {number(one.beta)}"
        for one in settings
    ]
    return (SEEN if settings[0].is_degenerate else NOT_SEEN), listed(parts)


def _accepts(grid: Grid, loss: str) -> tuple[str, str]:
    settings = _at_highest_rate(grid, loss)
    if not settings:
        return _nothing(f"{loss} was not scored at the higher of two learning rates")
    return (NOT_SEEN if any(one.breaks for one in settings) else SEEN), _broken(settings)


def _dpop_but_smallest(grid: Grid) -> tuple[str, str]:
    settings = _at_highest_rate(grid, _DPOP)
    if len(settings) < 2:
        return _nothing("dpop was not scored with two betas at the higher of two learning rates")
    as_claimed = bool(settings[0].breaks) and not any(one.breaks for one in settings[1:])
    return (SEEN if as_claimed else NOT_SEEN), _broken(settings)


def _broken(settings: list[Setting]) -> str:
    broken = [f"beta {number(one.beta)} ({', '.join(one.breaks)})" for one in settings if one.breaks]
    return f"broke at {listed(broken)}" if broken else f"did not break at any of its {len(settings)} settings"


def _worst(verdicts: list[str]) -> str:
    return next(verdict for verdict in (NOT_SEEN, UNCLEAR, SEEN) if verdict in verdicts)
