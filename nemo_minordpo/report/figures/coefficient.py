"""Figure 1 of the paper: the coefficient f(beta, margin) of a pair's gradient."""

import math
from pathlib import Path

from nemo_minordpo.report.figures.canvas import beta_colors, legend_above, panels, save

_POINTS = 121
_REACH = 4.0  # beta * margin at the ends of the smallest beta's curve


def coefficient(beta: float, margin: float) -> float:
    """How hard a pair still pulls: beta * sigmoid(-beta * margin), Eq. 4 of the paper."""
    # exp of a negative number only: a positive one overflows for large beta
    small = math.exp(-abs(beta * margin))
    return beta * (small if margin > 0 else 1) / (1 + small)


def margins(betas: list[float]) -> list[float]:
    """The x axis: as far as the curve of the smallest beta bends, in both directions."""
    reach = _REACH / min(betas)
    return [reach * (2 * place / (_POINTS - 1) - 1) for place in range(_POINTS)]


def draw_coefficient(betas: list[float], path: Path) -> None:
    figure, (axes,) = panels(1, columns=1, width=6)
    for beta, color in beta_colors([*betas]).items():
        assert beta is not None
        places = margins(betas)
        axes.plot(places, [coefficient(beta, at) for at in places], color=color, linewidth=2, label=f"beta {beta:g}")
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_xlabel("margin, nats (without beta)")
    axes.set_ylabel("f(beta, margin) = beta sigmoid(-beta margin)")
    legend_above(figure, axes, columns=3)
    save(figure, path)
