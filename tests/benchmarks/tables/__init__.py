"""The tables of README.md and docs/, made from docs/results/*.json and from nothing else.

    python -m tests.benchmarks.tables            # fills the pages again; a benchmark does so when it has measured

A page holds a table between ``<!-- table: NAME -->`` and ``<!-- end -->``, with NAME one of :data:`TABLES`.
"""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.benchmarks.tables import cluster, cpu, gpu, sweeps, theory

ROOT = Path(__file__).parents[3]
RESULTS = ROOT / "docs" / "results"
# name -> (file in docs/results, what is made of it)
TABLES: dict[str, tuple[str, Callable[[Any], str]]] = {
    "demo": ("demo", sweeps.scores),
    "real": ("real", sweeps.scores_with_flexible),
    "paper-small": ("paper-small", sweeps.grid),
    "paper-small-runs": ("paper-small", sweeps.runs),
    "paper-small-best": ("paper-small", sweeps.whole("Best at each setting")),
    "paper-small-claims": ("paper-small", sweeps.whole("The paper's claims")),
    "paper-small-metrics": ("paper-small", sweeps.whole("Metrics against score")),
    "paper-small-health": ("paper-small", sweeps.whole("Health")),
    "benchmark": ("benchmark", cpu.benchmark),
    "benchmark-short": ("benchmark", cpu.benchmark_short),
    "peak": ("peak", cpu.peak),
    "head": ("head", cpu.head),
    "scaling": ("scaling", cpu.scaling),
    "plan": ("plan", cpu.plan),
    "conversion": ("conversion", cpu.conversion),
    "prepare": ("prepare", cpu.prepare),
    "gpu": ("gpu", gpu.speed),
    "gpu-short": ("gpu", gpu.speed_short),
    "gpu-tiles": ("gpu", gpu.tiles),
    "faults": ("faults", cluster.faults),
    "faults-times": ("faults", cluster.times),
    "step-time": ("step-time", theory.steps),
    "step-time-rows": ("step-time", theory.rows),
    "step-time-fusions": ("step-time", theory.fusions),
    "step-time-heads": ("step-time", theory.heads),
    "step-time-blocks": ("step-time", theory.blocks),
    "step-time-published": ("step-time", theory.published),
}
_PLACE = re.compile(r"(<!-- table: (\S+) -->\n).*?(<!-- end -->\n)", re.DOTALL)


def pages() -> Iterator[Path]:
    yield ROOT / "README.md"
    yield from sorted((ROOT / "docs").glob("*.md"))


def made(name: str) -> str:
    """The table, or the lines, called ``name``."""
    file, make = TABLES[name]
    return make(json.loads((RESULTS / f"{file}.json").read_text(encoding="utf-8")))


def filled(page: str) -> str:
    """A page with every table as the results have it now.

    Raises:
        KeyError: a place names no table.
        ValueError: a place has no end.
    """
    text, count = _PLACE.subn(lambda place: f"{place[1]}\n{made(place[2])}\n{place[3]}", page)
    if count != page.count("<!-- table: ") or count != page.count("<!-- end -->"):
        raise ValueError("each <!-- table: NAME --> needs its own <!-- end -->, both on lines of their own")
    return text


def fill_pages() -> list[Path]:
    """Write the pages whose tables have changed, and return them."""
    changed = []
    for path in pages():
        old = path.read_text(encoding="utf-8")
        new = filled(old)
        if new != old:
            path.write_text(new, encoding="utf-8")
            changed.append(path)
    return changed
