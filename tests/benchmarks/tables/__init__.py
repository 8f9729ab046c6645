"""The tables of README.md and docs/: results from docs/results/*.json, metrics from their declarations.

    python -m tests.benchmarks.tables            # updates the pages; benchmarks do so themselves

A page holds a table between ``<!-- table: NAME -->`` and ``<!-- end -->``, with NAME one of :data:`TABLES`.
"""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.benchmarks.tables import cluster, cpu, gpu, metrics, sweeps, theory

ROOT = Path(__file__).parents[3]
RESULTS = ROOT / "docs" / "results"


def _of(file: str, make: Callable[[Any], str]) -> Callable[[], str]:
    """Makes a table from a file in docs/results, which is read on demand."""
    return lambda: make(json.loads((RESULTS / f"{file}.json").read_text(encoding="utf-8")))


TABLES: dict[str, Callable[[], str]] = {
    "metrics": metrics.pair_metrics,
    "demo": _of("demo", sweeps.scores),
    "real": _of("real", sweeps.scores_with_flexible),
    "rounds": _of("rounds", sweeps.scores),
    "paper-small": _of("paper-small", sweeps.grid),
    "paper-small-runs": _of("paper-small", sweeps.runs),
    "paper-small-best": _of("paper-small", sweeps.whole("Best at each setting")),
    "paper-small-claims": _of("paper-small", sweeps.whole("The paper's claims")),
    "paper-small-metrics": _of("paper-small", sweeps.whole("Metrics against score")),
    "paper-small-health": _of("paper-small", sweeps.whole("Health")),
    "seeds-0.02": _of("paper-small-seeds-0.02", sweeps.seeds),
    "seeds-0.02-tests": _of("paper-small-seeds-0.02", sweeps.comparisons),
    "seeds-0.1": _of("paper-small-seeds-0.1", sweeps.seeds),
    "seeds-0.1-tests": _of("paper-small-seeds-0.1", sweeps.comparisons),
    "rounds-farthest": _of("rounds-farthest", sweeps.seeds),
    "rounds-farthest-tests": _of("rounds-farthest", sweeps.comparisons),
    "benchmark": _of("benchmark", cpu.benchmark),
    "benchmark-short": _of("benchmark", cpu.benchmark_short),
    "hosts": _of("hosts", cpu.hosts),
    "peak": _of("peak", cpu.peak),
    "head": _of("head", cpu.head),
    "scaling": _of("scaling", cpu.scaling),
    "plan": _of("plan", cpu.plan),
    "memory": _of("memory", cpu.memory),
    "conversion": _of("conversion", cpu.conversion),
    "answers": _of("answers", cpu.answers),
    "answers-waiting": _of("answers", cpu.waiting),
    "prepare": _of("prepare", cpu.prepare),
    "inspect": _of("inspect", cpu.inspect),
    "gpu": _of("gpu", gpu.speed),
    "gpu-short": _of("gpu", gpu.speed_short),
    "gpu-tiles": _of("gpu", gpu.tiles),
    "faults": _of("faults", cluster.faults),
    "faults-times": _of("faults", cluster.times),
    "step-time": _of("step-time", theory.steps),
    "step-time-rows": _of("step-time", theory.rows),
    "step-time-fusions": _of("step-time", theory.fusions),
    "step-time-heads": _of("step-time", theory.heads),
    "step-time-blocks": _of("step-time", theory.blocks),
    "step-time-published": _of("step-time", theory.published),
}
_PLACE = re.compile(r"(<!-- table: (\S+) -->\n).*?(<!-- end -->\n)", re.DOTALL)


def pages() -> Iterator[Path]:
    yield ROOT / "README.md"
    yield from sorted((ROOT / "docs").glob("*.md"))


def filled(page: str) -> str:
    """A page with all tables updated from the results.

    Raises:
        KeyError: there is no table of that name.
        ValueError: a table has no end mark.
    """
    text, count = _PLACE.subn(lambda place: f"{place[1]}\n{TABLES[place[2]]()}\n{place[3]}", page)
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
