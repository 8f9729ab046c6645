"""Results of `make gpu-check` on one H200."""

import statistics
from typing import Any

from tests.benchmarks.tables.markdown import table

_PEAK = 989.4  # TFLOP/s in bfloat16
_MODELS = {"1.5B": "Qwen2.5-1.5B's sizes", "7B": "8 of the 28 layers of Qwen2.5-7B"}
# commit -> [(measurement, description)]
_SHOWN = {
    "9c2fd89": [
        (f"{model}_{numbers}_fused", f"{_MODELS[model]}, 128 pairs per step")
        for model in _MODELS
        for numbers in ("bf16", "fp8_hybrid")
    ],
    "93f34aa": [
        ("bf16_fused", "1.5B, 64 pairs per step, before the fixes"),
        ("fp8_hybrid_fused", "1.5B, 64 pairs per step, before the fixes"),
        ("bf16_single", "the same without `fusions=te`"),
        ("fp8_hybrid_single", "the same without `fusions=te`"),
    ],
}


def speed(results: dict[str, Any]) -> str:
    """Every row length of every measurement, except those of the first commit that were repeated later."""
    rows = []
    for commit, shown in _SHOWN.items():
        for name, what in shown:
            for length, row in results[commit]["measurements"][name]["rows"].items():
                if commit == "93f34aa" and length != "8192":
                    continue
                tflops = row["model_tflops"]
                rows.append(
                    (
                        what,
                        length,
                        "FP8" if "fp8" in name else "bf16",
                        f"{row['step_s']:.3f}",
                        f"{row['pairs_per_s']:.0f}",
                        f"{tflops:.0f}",
                        f"{tflops / _PEAK:.0%}",
                        f"{row['matmul_peak_fraction']:.0%}",
                        f"{row['profile']['idle_s'] / row['profile']['wall_s']:.0%}",
                        f"{row['peak_memory_gib']:.0f}",
                    )
                )
    return table(
        "model | row, tokens: | precision | s per step: | pairs/s: | TFLOP/s: | of 989 TFLOP/s: "
        "| of the measured peak: | GPU idle: | GiB:",
        rows,
    )


def speed_short(results: dict[str, Any]) -> str:
    """The fastest row length of each model and precision, and NeMo-Aligner's own step on the same pairs."""
    aligner = statistics.median(results["93f34aa"]["measurements"]["aligner"]["seconds"])
    rows = [
        (f"{_MODELS['1.5B']}, 64 pairs per step, NeMo-Aligner's step", "bf16", "-", f"{64 / aligner:.0f}", "-", "-")
    ]
    for name, what in _SHOWN["9c2fd89"]:
        measured = results["9c2fd89"]["measurements"][name]["rows"]
        length, row = max(measured.items(), key=lambda item: item[1]["pairs_per_s"])
        share = f"{row['model_tflops'] / _PEAK:.0%}"
        precision = "FP8" if "fp8" in name else "bf16"
        rows.append((what, precision, length, f"{row['pairs_per_s']:.0f}", share, f"{row['peak_memory_gib']:.0f}"))
    return table("one H200 | precision | row, tokens: | pairs/s: | of 989 TFLOP/s: | GiB:", rows)


def tiles(results: dict[str, Any]) -> str:
    """Milliseconds of FlexAttention, forward and backward, with this project's tiles and with torch's."""
    measured = results["9c2fd89"]["tiles"]
    rows = []
    for name, own in measured.items():
        case, _, whose = name.rpartition(" ")
        if whose == "ours":
            torchs = measured[f"{case} torch"]
            ratio = f"{own['both'] / torchs['both'] - 1:+.0%}"
            rows.append((case.replace(" ", ", "), f"{own['both']:.2f}", f"{torchs['both']:.2f}", ratio))
    return table("head size, heads, row | this project's tiles, ms: | torch's, ms: | difference:", rows)
