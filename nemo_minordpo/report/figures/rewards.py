"""The reward curves: figures 2 to 5 of the paper."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from nemo_minordpo.report.axes import Grid, Setting, number
from nemo_minordpo.report.curves import Curves, smoothed
from nemo_minordpo.report.figures.canvas import DASHES, REWARD_COLORS, beta_colors, legend_above, panels, save
from nemo_minordpo.report.runs import REWARDS

_UNIT = "log(policy / reference), nats"


def draw_rewards(settings: Sequence[Setting], titles: Sequence[str], curves: Curves, path: Path) -> None:
    """Chosen, rejected and margin against steps, one panel per setting, on one scale.

    Faint = each seed as recorded; strong = mean over the seeds and a tenth of the steps; band = lowest to highest.
    """
    columns = 4 if len(settings) == 4 else 3
    figure, axes = panels(len(settings), columns=columns, sharey=True)
    for place, (setting, title) in enumerate(zip(settings, titles, strict=True)):
        _draw_setting(axes[place], setting, curves)
        axes[place].set_title(title)
    for panel in axes[::columns]:
        panel.set_ylabel(_UNIT)
    legend_above(figure, axes[0], columns=min(len(settings) + 1, len(REWARDS)))
    save(figure, path)


def draw_overview(grid: Grid, curves: Curves, path: Path) -> None:
    """One row per loss and learning rate, one column per reward, one line per beta; seeds as in `draw_rewards`."""
    rows, colors = grid.rows(), beta_colors(grid.betas)
    figure, axes = panels(len(rows) * len(REWARDS), columns=len(REWARDS))
    for row, ((loss, rate), settings) in enumerate(rows.items()):
        for column, metric in enumerate(REWARDS):
            panel = axes[row * len(REWARDS) + column]
            for setting in settings:
                curve = curves.setting(setting, metric)
                color, label = colors[setting.beta], f"beta {number(setting.beta)}"
                panel.plot(curves.steps.centres, smoothed(curve.mean), color=color, linewidth=1.8, label=label)
                if len(setting.runs) > 1:
                    low, high = smoothed(curve.low), smoothed(curve.high)
                    panel.fill_between(curves.steps.centres, low, high, color=color, alpha=0.15, linewidth=0)
            _frame(panel)
            panel.set_title(f"{loss}, lr {number(rate)}: {metric}")
        axes[row * len(REWARDS)].set_ylabel(_UNIT)
    longest = max(range(len(rows)), key=lambda row: len(list(rows.values())[row]))
    legend_above(figure, axes[longest * len(REWARDS)], columns=6)
    save(figure, path)


def _draw_setting(axes: Axes, setting: Setting, curves: Curves) -> None:
    # A line through one or two points is hard to see.
    marker = "o" if curves.steps.count < 3 else ""
    for metric, dash in zip(REWARDS, DASHES, strict=False):
        color, mean = REWARD_COLORS[metric], curves.setting(setting, metric)
        for run in setting.runs:
            axes.plot(curves.steps.centres, curves.run(run, metric).mean, color=color, linewidth=0.8, alpha=0.3)
        if len(setting.runs) > 1:
            low, high = smoothed(mean.low), smoothed(mean.high)
            axes.fill_between(curves.steps.centres, low, high, color=color, alpha=0.15, linewidth=0)
        style = {"color": color, "linestyle": dash, "linewidth": 2, "marker": marker, "label": metric}
        axes.plot(curves.steps.centres, smoothed(mean.mean), **style)
    _frame(axes)
    if not any(run.steps for run in setting.runs):
        axes.text(0.5, 0.5, "no step recorded", transform=axes.transAxes, ha="center", va="bottom")


def _frame(axes: Axes) -> None:
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set_xlabel("step")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
