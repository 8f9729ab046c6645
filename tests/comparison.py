"""Comparing two runs that should compute the same."""

from nemo_minordpo.records import StepMetrics

MEASURED = (
    "step_s", "pairs_per_s", "tokens_per_s", "tokens_per_s_equivalent", "model_tflops", "matmul_peak_fraction",
    "peak_memory_gib",
)  # fmt: skip


def without_measured(line: StepMetrics) -> dict[str, float]:
    """The values except time and memory."""
    return {name: value for name, value in line.values.items() if name not in MEASURED}
