"""Shared by all figures: a canvas that needs no display, colours, and atomic writes."""

import math
from pathlib import Path

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from nemo_minordpo.files import whole_file

# Okabe and Ito's palette: distinct under every common colour blindness; dashes distinguish lines in black and white.
REWARD_COLORS = {"rewards/chosen": "#0072B2", "rewards/rejected": "#D55E00", "rewards/margin": "#009E73"}
DASHES = ("-", "--", (0, (4, 1.5, 1, 1.5)), ":")
_LOSS_COLORS = {"minordpo": "#0072B2", "dpo": "#D55E00", "dpop": "#CC79A7"}
_OTHER_COLORS = ("#009E73", "#E69F00", "#56B4E9", "#8C6D31", "#7F7F7F")
MARKERS = ("o", "s", "^", "D", "v", "P")


def loss_colors(losses: list[str]) -> dict[str, str]:
    """One colour per loss: fixed for the paper's three, from the remaining colours for others."""
    left = [*_OTHER_COLORS, *(color for name, color in _LOSS_COLORS.items() if name not in losses)]
    others = [loss for loss in losses if loss not in _LOSS_COLORS]
    return {loss: _LOSS_COLORS.get(loss) or left[others.index(loss) % len(left)] for loss in losses}


def beta_colors(betas: list[float | None]) -> dict[float | None, str]:
    """From dark (small beta) to light, but never too light to see on white."""
    last = max(len(betas) - 1, 1)
    return {beta: to_hex(colormaps["plasma"](0.05 + 0.77 * place / last)) for place, beta in enumerate(betas)}


def panels(count: int, *, columns: int, sharey: bool = False, width: float = 3.6) -> tuple[Figure, list[Axes]]:
    """A figure of `count` panels in rows; unused panels of the last row are hidden.

    Uses Figure and canvas directly: pyplot would look for a display and hold the figure until the process ends.
    """
    columns = min(count, columns)
    rows = math.ceil(count / columns)
    figure = Figure(figsize=(1.2 + width * columns, 0.9 + 3.1 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    axes = list(figure.subplots(rows, columns, squeeze=False, sharey=sharey).flat)
    for one in axes[count:]:
        one.set_visible(False)
    for one in axes[:count]:
        one.grid(axis="y", alpha=0.25)
        one.spines[["top", "right"]].set_visible(False)
        one.title.set_fontsize(11)
    return figure, axes[:count]


def legend_above(figure: Figure, axes: Axes, *, columns: int) -> None:
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside upper center", ncols=min(columns, len(labels)), frameon=False)


def save(figure: Figure, path: Path) -> None:
    with whole_file(path, "wb") as out:
        figure.savefig(out, format="png", dpi=150)
