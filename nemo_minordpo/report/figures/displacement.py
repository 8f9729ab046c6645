"""What training did to chosen responses, by a measure of the pair before training."""

from collections.abc import Sequence
from pathlib import Path

from nemo_minordpo.report.axes import number
from nemo_minordpo.report.displacement import Displacement
from nemo_minordpo.report.figures.canvas import DASHES, MARKERS, legend_above, loss_colors, panels, save


def draw_displacement(found: Sequence[Displacement], losses: list[str], path: Path) -> None:
    """One panel per learning rate and beta, one line per loss, ten groups of pairs from low to high CHES."""
    places: dict[tuple[float | None, float | None], list[Displacement]] = {}
    for one in found:
        places.setdefault((one.learning_rate, one.beta), []).append(one)
    figure, axes = panels(len(places), columns=2, width=4.2)
    colors = loss_colors(losses)
    for panel, ((rate, beta), settings) in zip(axes, places.items(), strict=True):
        for one in settings:
            place = losses.index(one.loss)
            panel.plot(
                range(1, len(one.bins) + 1), one.bins, color=colors[one.loss], label=one.loss, markersize=4,
                linestyle=DASHES[place % len(DASHES)], marker=MARKERS[place % len(MARKERS)],
            )  # fmt: skip
        panel.axhline(0, color="#555555", linewidth=0.8)
        panel.set_title(f"lr {number(rate)}, beta {number(beta)}")
        panel.set_xlabel("tenth of the pairs, by CHES per token")
    axes[0].set_ylabel("chosen response, nats")
    legend_above(figure, max(axes, key=lambda panel: len(panel.lines)), columns=5)
    save(figure, path)
