"""What two runs that computed the same agree in."""

from nemo_minordpo.records import StepMetrics

TIMINGS = (
    "step_s", "pairs_per_s", "tokens_per_s", "tokens_per_s_equivalent", "model_tflops", "matmul_peak_fraction",
)  # fmt: skip


def without_timings(line: StepMetrics) -> dict[str, float]:
    return {name: value for name, value in line.values.items() if name not in TIMINGS}
