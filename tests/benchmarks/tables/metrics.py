"""The metrics of a step, as declared in core/metrics.py."""

from tests.benchmarks.tables.markdown import table


def pair_metrics() -> str:
    """Formula, unit and reading of each metric that is a mean over pairs."""
    from nemo_minordpo.core.metrics import PAIR_METRICS  # imports torch, which no other table needs

    rows = [(f"`{name}`", f"`{one.formula}`", one.unit, one.reading) for name, one in PAIR_METRICS.items()]
    return table("metric | of a pair | unit | how to read it", rows)
