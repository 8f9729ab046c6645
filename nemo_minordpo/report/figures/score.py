"""Figure 6 of the paper: score against beta."""

from pathlib import Path

from matplotlib.axes import Axes

from nemo_minordpo.report.axes import Grid, Setting, number
from nemo_minordpo.report.figures.canvas import DASHES, MARKERS, legend_above, loss_colors, panels, save

_APART = 0.09  # gap between the losses at one beta, as a fraction of the distance to the next beta
_BESIDE = 0.035  # the seeds' dots stand beside their mean, which would cover them


def place_of(grid: Grid, setting: Setting) -> float:
    """A setting's x position: betas are evenly spaced, and the losses at one beta are slightly offset."""
    return grid.betas.index(setting.beta) + _APART * (grid.losses.index(setting.loss) - (len(grid.losses) - 1) / 2)


def seeds_place(grid: Grid, setting: Setting) -> float:
    """The x position of the dots of a setting's seeds."""
    return place_of(grid, setting) + _BESIDE


def draw_score(grid: Grid, path: Path) -> None:
    """One panel per learning rate, one line per loss; whiskers: 95 % intervals, dots: seeds, crosses: degenerate."""
    rates = [rate for rate in grid.learning_rates if any(s.score and s.learning_rate == rate for s in grid.settings)]
    figure, axes = panels(len(rates), columns=2, sharey=True, width=4.8)
    for panel, rate in zip(axes, rates, strict=True):
        _draw_base(panel, grid)
        for place, loss in enumerate(grid.losses):
            settings = [one for one in grid.of(loss) if one.learning_rate == rate and one.score is not None]
            if settings:
                _draw_loss(panel, grid, settings, place)
        panel.set_xticks(range(len(grid.betas)), [number(beta) for beta in grid.betas])
        panel.set_xlim(-0.5, len(grid.betas) - 0.5)
        panel.set_title(f"lr {number(rate)}")
        panel.set_xlabel("beta")
    axes[0].set_ylabel("strict accuracy, %")
    fullest = max(axes, key=lambda panel: len(panel.get_legend_handles_labels()[1]))
    legend_above(figure, fullest, columns=5)
    save(figure, path)


def _draw_base(axes: Axes, grid: Grid) -> None:
    if (base := grid.base_rate) is not None:
        axes.axhline(100 * base.value, color="#555555", linewidth=1.2, linestyle=":", label="base model")
        axes.axhspan(100 * base.low, 100 * base.high, color="#555555", alpha=0.1, linewidth=0)


def _draw_loss(axes: Axes, grid: Grid, settings: list[Setting], number_of_loss: int) -> None:
    color = loss_colors(grid.losses)[settings[0].loss]
    rates = [one.score for one in settings if one.score is not None]
    places = [place_of(grid, one) for one in settings]
    values = [100 * rate.value for rate in rates]
    whiskers = [
        [100 * (rate.value - rate.low) for rate in rates],
        [100 * (rate.high - rate.value) for rate in rates],
    ]
    axes.errorbar(
        places, values, yerr=whiskers, color=color, linewidth=1.8, elinewidth=1, capsize=2.5, markersize=5,
        linestyle=DASHES[number_of_loss % len(DASHES)], marker=MARKERS[number_of_loss % len(MARKERS)],
        label=settings[0].loss,
    )  # fmt: skip
    for setting in settings:
        if len(setting.scores) > 1:
            seeds = [100 * score.strict_accuracy for score in setting.scores]
            axes.plot([seeds_place(grid, setting)] * len(seeds), seeds, ".", color=color, markersize=4, alpha=0.8)
    crossed = [(at, value) for at, value, one in zip(places, values, settings, strict=True) if one.is_degenerate]
    if crossed:
        axes.plot(*zip(*crossed, strict=True), "x", color="black", markersize=11, markeredgewidth=2, zorder=5)
