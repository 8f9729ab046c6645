"""Benchmark results as JSON and as a figure."""

import json
from pathlib import Path
from typing import Any

from tests.benchmarks.tables.cpu import TRAINERS


def add_result(result: dict[str, Any], output: Path, *, order: list[str]) -> None:
    """Add a case to `output`, replacing its earlier result on this processor, and draw a figure next to it."""
    output.parent.mkdir(parents=True, exist_ok=True)
    results = json.loads(output.read_text()) if output.exists() else []
    results = [other for other in results if _key(other) != _key(result)] + [result]
    results.sort(key=lambda other: (_key(other)[0], order.index(other["case"]["name"])))
    output.write_text(json.dumps(results, indent=1) + "\n")
    draw([one for one in results if _key(one)[0] == _key(result)[0]], output.with_suffix(".png"))


def _key(result: dict[str, Any]) -> tuple[str, str]:
    return result["machine"]["processor"], result["case"]["name"]


def draw(results: list[dict[str, Any]], path: Path) -> None:
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    names = list(dict.fromkeys(name for result in results for name in result["results"]))
    figure, axes = plt.subplots(figsize=(10, 3.6), layout="constrained")
    width = 0.8 / len(names)
    for place, name in enumerate(names):
        bars = [(x, result["results"][name]) for x, result in enumerate(results) if name in result["results"]]
        xs = [x + (place - (len(names) - 1) / 2) * width for x, _ in bars]
        drawn = axes.bar(xs, [row["pairs_per_s"] for _, row in bars], width, label=TRAINERS[name])
        axes.bar_label(drawn, fmt="%.2g", fontsize=7)
    axes.set_xticks(
        range(len(results)),
        [f"{r['case']['model']} {r['case']['pairs']}\nTP={r['case']['tensor_parallel']}" for r in results],
    )
    axes.set_yscale("log")
    axes.set_ylabel("pairs per second")
    axes.legend(frameon=False, ncols=len(names), loc="lower center", bbox_to_anchor=(0.5, 1.0))
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)
    plt.close(figure)
