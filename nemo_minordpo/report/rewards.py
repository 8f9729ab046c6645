"""The reward curves, one panel a run, on one scale."""

import math
import os
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from nemo_minordpo.report.runs import FINAL_PART, REWARDS, Run

# Okabe and Ito's palette: told apart with every common colour blindness, and by dashes in black and white.
_STYLES = {
    "rewards/chosen": {"color": "#0072B2", "linestyle": "-"},
    "rewards/rejected": {"color": "#D55E00", "linestyle": "--"},
    "rewards/margin": {"color": "#009E73", "linestyle": (0, (4, 1.5, 1, 1.5))},
}
_PANELS_IN_A_ROW = 3


def draw_rewards(runs: list[Run], path: Path) -> None:
    """Draw chosen, rejected and margin against steps; faint = as recorded, strong = mean over a tenth of the steps."""
    columns = min(len(runs), _PANELS_IN_A_ROW)
    lines = math.ceil(len(runs) / columns)
    # Figure and canvas directly: pyplot would look for a display and keep the figure for the life of the process.
    figure = Figure(figsize=(1.2 + 3.6 * columns, 0.9 + 3.1 * lines), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(lines, columns, squeeze=False, sharey=True)
    for number, axes in enumerate(panels.flat):
        if number < len(runs):
            _draw_run(axes, runs[number])
        else:
            axes.set_visible(False)
    for line in panels:
        line[0].set_ylabel("log(policy / reference), nats")
    handles, labels = panels.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=min(columns + 1, len(REWARDS)), frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    figure.savefig(temporary, format="png", dpi=150)
    os.replace(temporary, path)


def _draw_run(axes: Axes, run: Run) -> None:
    steps = [step.step for step in run.steps]
    # A line through one or two points can hardly be seen.
    marker = "o" if len(steps) < 3 else ""
    for name in REWARDS:
        style, values = _STYLES[name], run.values(name)
        axes.plot(steps, values, color=style["color"], linewidth=0.8, alpha=0.3)
        axes.plot(steps, smoothed(values), **style, linewidth=2, marker=marker, label=name)
    axes.axhline(0, color="black", linewidth=0.8)
    title = run.name if run.beta is None else f"{run.name}, beta {run.beta:g}"
    axes.set_title(title, fontsize=11)
    axes.set_xlabel("step")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(axis="y", alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    if not steps:
        axes.text(0.5, 0.5, "no step recorded", transform=axes.transAxes, ha="center", va="bottom")


def smoothed(values: list[float]) -> list[float]:
    """Centred mean over a tenth of the values, over fewer at the ends; NaN where nothing finite is near."""
    reach = int(len(values) * FINAL_PART) // 2
    result = []
    for place in range(len(values)):
        near = [value for value in values[max(0, place - reach) : place + reach + 1] if math.isfinite(value)]
        result.append(sum(near) / len(near) if near else math.nan)
    return result
