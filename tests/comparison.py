"""Comparing two runs that should compute the same."""

import math
from collections.abc import Iterable

from nemo_minordpo.records import StepMetrics

MEASURED = (
    "step_s", "pairs_per_s", "tokens_per_s", "tokens_per_s_equivalent", "model_tflops", "matmul_peak_fraction",
    "peak_memory_gib",
)  # fmt: skip


def without_measured(line: StepMetrics) -> dict[str, float]:
    """The values except time and memory."""
    return {name: value for name, value in line.values.items() if name not in MEASURED}


def largest(errors: Iterable[float]) -> float:
    """The maximum, or NaN if there is one: max() drops a NaN that does not come first, and the error passes."""
    errors = list(errors)
    return math.nan if any(map(math.isnan, errors)) else max(errors)
