"""The results of the benchmarks as JSON, as a Markdown table and as a figure."""

import json
from pathlib import Path
from typing import Any


def add_result(result: dict[str, Any], output: Path, *, order: list[str]) -> None:
    """Add a case to `output` with the suffixes .json, .md and .png, in place of an earlier result of the same case."""
    output.parent.mkdir(parents=True, exist_ok=True)
    file = output.with_suffix(".json")
    results = json.loads(file.read_text()) if file.exists() else []
    results = [other for other in results if other["case"]["name"] != result["case"]["name"]] + [result]
    results.sort(key=lambda other: order.index(other["case"]["name"]))
    file.write_text(json.dumps(results, indent=1) + "\n")
    output.with_suffix(".md").write_text(table(results))
    _figure(results, output.with_suffix(".png"))


def table(results: list[dict[str, Any]]) -> str:
    lines = [
        "| model, pairs, ranks | trainer | s a step (fastest-slowest) | pairs/s | ours is faster by | of matmul peak "
        "| peak memory, GiB |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for result in results:
        case = result["case"]
        where = (
            f"{case['model']}, {case['pairs']}, TP={case['tensor_parallel']}, {case['global_batch_size']} pairs a step"
        )
        for name, row in result["results"].items():
            share = f"{row['matmul_peak_fraction']:.0%}" if "matmul_peak_fraction" in row else "-"
            lines.append(
                f"| {where} | {name} | {row['seconds']:.2f} ({row['fastest']:.2f}-{row['slowest']:.2f}) "
                f"| {row['pairs_per_s']:.2f} | {result['speed_up'][name]:.1f}x | {share} | {row['rss_peak_gib']:.1f} |"
            )
            where = ""
    return "\n".join(lines) + "\n"


def _figure(results: list[dict[str, Any]], path: Path) -> None:
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    names = list(dict.fromkeys(name for result in results for name in result["results"]))
    figure, axes = plt.subplots(figsize=(10, 3.6), layout="constrained")
    width = 0.8 / len(names)
    for place, name in enumerate(names):
        bars = [(x, result["results"][name]) for x, result in enumerate(results) if name in result["results"]]
        xs = [x + (place - (len(names) - 1) / 2) * width for x, _ in bars]
        drawn = axes.bar(xs, [row["pairs_per_s"] for _, row in bars], width, label=name)
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
