"""Results of `make bench` on CPUs."""

import statistics
from typing import Any

from tests.benchmarks.tables.markdown import table

MIB = 2**20
TRAINERS = {
    "ours": "nemo-minordpo",
    "ours, bf16": "nemo-minordpo, bf16",
    "ours, torch's matmul": "nemo-minordpo, torch's matmul",
    "nemo-aligner 0.7.0": "NeMo-Aligner 0.7.0",
    "trl": "TRL 1.16.0",
    "trl, bf16": "TRL 1.16.0, bf16",
}


def _case(case: dict[str, Any]) -> str:
    return f"{case['model']}, {case['pairs']}, TP={case['tensor_parallel']}, {case['global_batch_size']} pairs per step"


def benchmark(results: list[dict[str, Any]]) -> str:
    """One table per processor, below its peaks and the load by other processes."""
    return "\n".join(
        f"**{name}.** {_machine([one['machine'] for one in own])}\n\n{_benchmark(own)}"
        for name, own in _by_processor(results).items()
    )


def _by_processor(results: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    names = dict.fromkeys(result["machine"]["processor"] for result in results)
    return {name: [one for one in results if one["machine"]["processor"] == name] for name in names}


def _machine(machines: list[dict[str, Any]]) -> str:
    if "load_of_others" not in machines[0]:
        return "Peaks and load were not recorded."
    peaks = [one[when] for one in machines for when in ("gflops_before", "gflops_after")]
    ways = [
        f"{words} {min(values):.0f}-{max(values):.0f}"
        for words, values in (
            ("float32 by torch", [peak["torch"]["float32"] for peak in peaks]),
            ("by oneDNN", [peak["instead"]["float32"] for peak in peaks]),
            ("bfloat16 by torch", [peak["torch"]["bfloat16"] for peak in peaks]),
            ("in float32 and rounded", [peak["instead"]["bfloat16"] for peak in peaks]),
        )
    ]
    load = max(one["load_of_others"] for one in machines)
    return f"Matrix products, GFLOP/s: {', '.join(ways)}. Load by other processes: at most {load:.0%} of all cores."


def _benchmark(results: list[dict[str, Any]]) -> str:
    rows = []
    for result in results:
        where = _case(result["case"])
        if not result["measured"]:
            where += f"; not measured: rounds vary {max(result['spread'].values()):.1f}x"
        for name, row in result["results"].items():
            share = f"{row['matmul_peak_fraction']:.0%}" if "matmul_peak_fraction" in row else "-"
            ratio = f"{result['speed_up'][name]:.1f}x"
            rows.append(
                (
                    where,
                    TRAINERS[name],
                    f"{row['seconds']:.2f} ({row['fastest']:.2f}-{row['slowest']:.2f})",
                    f"{row['pairs_per_s']:.2f}",
                    ratio if result["measured"] else f"({ratio})",
                    share,
                    f"{row['rss_peak_gib']:.1f}",
                )
            )
            where = ""
    columns = (
        "model, pairs, ranks | trainer | s per step (fastest-slowest): | pairs/s: | nemo-minordpo is faster by: "
        "| of matmul peak: | peak memory, GiB:"
    )
    return table(columns, rows)


def benchmark_short(results: list[dict[str, Any]]) -> str:
    """One row per case that was measured: ranges over processors of the speed relative to each competitor, memory."""
    others = ("nemo-aligner 0.7.0", "trl")
    rows = []
    for name in dict.fromkeys(result["case"]["name"] for result in results if result["measured"]):
        measured = [result for result in results if result["measured"] and result["case"]["name"] == name]
        trainers = measured[0]["results"]
        memory = [f"{trainers[other]['rss_peak_gib']:.1f}" for other in ("ours", *others) if other in trainers]
        rows.append(
            (
                _case(measured[0]["case"]),
                _range([one["results"]["ours"]["pairs_per_s"] for one in measured], digits=2),
                *[
                    _range([one["speed_up"][other] for one in measured], digits=1, unit="x")
                    if other in trainers
                    else "-"
                    for other in others
                ],
                " / ".join([*memory, "-"][: len(others) + 1]),
            )
        )
    columns = "float32, two CPU cores | pairs/s: | faster than NeMo-Aligner 0.7.0: | faster than TRL 1.16.0: "
    return table(f"{columns}| GiB: this / NeMo-Aligner / TRL:", rows)


def _range(values: list[float], *, digits: int, unit: str = "") -> str:
    low, high = (f"{value:.{digits}f}{unit}" for value in (min(values), max(values)))
    return low if low == high else f"{low}-{high}"


def hosts(result: dict[str, Any]) -> str:
    return table(
        "30M, 16 pairs per step | host | s per step (fastest-slowest): | losses differ by at most:",
        [
            (
                f"TP={row['tensor_parallel']}" if row["host"] == "aligner" else "",
                row["host"],
                f"{row['seconds']:.2f} ({row['fastest']:.2f}-{row['slowest']:.2f})",
                f"{row['losses_apart']:.0e}" if row["host"] == "bridge" else "",
            )
            for row in result["rows"]
        ],
    )


def peak(rows: list[dict[str, Any]]) -> str:
    return table(
        "model | pairs per step: | s per step: | share of the peak (lowest-highest):",
        [
            (
                row["model"],
                row["pairs"],
                f"{statistics.median(row['seconds']):.2f}",
                f"{statistics.median(row['shares']):.0%} ({min(row['shares']):.0%}-{max(row['shares']):.0%})",
            )
            for row in rows
        ],
    )


def head(rows: list[dict[str, Any]]) -> str:
    return table(
        "ranks: | head | s, forward and backward (fastest-slowest): | peak memory, GiB:",
        [
            (
                row["ranks"],
                TRAINERS[row["head"]],
                f"{row['seconds']:.2f} ({row['fastest']:.2f}-{row['slowest']:.2f})",
                f"{row['peak_gib']:.2f}",
            )
            for row in rows
        ],
    )


def scaling(rows: list[dict[str, Any]]) -> str:
    return table(
        "series | pairs: | length: | shared: | TFLOP: | s: | s per TFLOP:",
        [
            (
                row["series"],
                row["pairs"],
                row["length"],
                f"{row['shared']:.0%}",
                f"{row['tflop']:.3f}",
                f"{row['seconds']:.2f}",
                f"{row['seconds'] / row['tflop']:.2f}",
            )
            for row in rows
        ],
    )


def plan(rows: list[dict[str, Any]]) -> str:
    return table(
        "model, pairs | settings | GiB planned: | GiB measured: | s per step planned: | s per step measured:",
        [
            (
                f"{row['model']}, {row['pairs']}",
                _settings(row["settings"]),
                f"{row['planned_gib']:.2f}",
                f"{row['measured_gib']:.2f}",
                f"{row['planned_seconds']:.2f}",
                f"{row['measured_seconds']:.2f}",
            )
            for row in rows
        ],
    )


def memory(rows: list[dict[str, Any]]) -> str:
    purposes = list(rows[0]["planned_gib"])
    return table(
        f"layers: | weights: | precision | {': | '.join(purposes)}: | measured:",
        [
            (
                row["layers"],
                f"{row['weights'] / 1e6:.0f}M",
                row["precision"],
                *(f"{row['planned_gib'][name]:.2f}" for name in purposes),
                "-" if row["measured_gib"] is None else f"{row['measured_gib']:.2f}",
            )
            for row in rows
        ],
    )


def _settings(given: list[str]) -> str:
    own = [setting for setting in given if "activations_checkpoint" not in setting]
    short = ", ".join(setting.removeprefix("model.").removeprefix("trainer.") for setting in own)
    return short + (", full recomputation" if len(own) < len(given) else "")


def conversion(result: dict[str, Any]) -> str:
    sizes = {name: f"{size / MIB:,.0f} MiB" for name, size in result["bytes"].items()}
    sentence = (
        f"Weights: {sizes['weights']}, of which the embedding has {sizes['embedding']} and a layer {sizes['layer']}."
    )
    rows = [
        (name, f"{cost['seconds']:.1f}", *[f"{cost[kind] / MIB:,.0f}" for kind in ("resident", "own")])
        for name, cost in result["stages"].items()
    ]
    return f"{sentence}\n\n{table('stage | seconds: | peak memory, MiB: | of which not mapped from files, MiB:', rows)}"


def prepare(results: list[dict[str, Any]]) -> str:
    return table(
        "how questions are found | rows: | pairs: | s: | CPU s: | peak memory, MiB:",
        [
            (
                row["case"],
                f"{row['counts']['rows']:,}",
                f"{row['counts']['pairs']:,}",
                f"{row['seconds']:.0f}",
                f"{row['cpu_seconds']:.0f}",
                f"{row['peak_mib']:,.0f}",
            )
            for row in results
        ],
    )


def inspect(results: list[dict[str, Any]]) -> str:
    return table(
        "pairs: | near-duplicates: | processes: | CPU s: | peak memory, MiB:",
        [
            (
                f"{row['counts']['pairs']:,}",
                f"{row['rejected']['--drop near_duplicate']:,}",
                row["workers"],
                f"{row['cpu_seconds']:.0f}",
                f"{row['peak_mib']:,.0f}",
            )
            for row in results
        ],
    )


def answers(result: dict[str, Any]) -> str:
    names = {"whole batches": "whole batches of 16, as before", "continuous": "`minordpo evaluate`"}
    rows = []
    kinds = dict.fromkeys((run["dtype"], run["kind"]) for run in result["runs"])
    for dtype, kind in kinds:
        runs = [run for run in result["runs"] if (run["dtype"], run["kind"]) == (dtype, kind)]
        seconds = sorted(run["seconds"] for run in runs)
        rows.append(
            (
                dtype,
                names[kind],
                _median(seconds),
                f"{statistics.median(run['tokens'] / run['seconds'] for run in runs):.0f}",
                f"{statistics.median(run['tokens'] / run['limit_s'] for run in runs):.0f}",
                f"{min(run['same_answers'] for run in runs)} of {result['questions']}",
                f"{max(run['rss_peak_gib'] for run in runs):.1f}",
            )
        )
    columns = "precision | answered by | s (fastest-slowest): | tokens/s: | limit, tokens/s: | same answers:"
    return table(f"{columns} | peak memory, GiB:", rows)


def _median(ordered: list[float]) -> str:
    return f"{statistics.median(ordered):.0f} ({ordered[0]:.0f}-{ordered[-1]:.0f})"


def waiting(result: dict[str, Any]) -> str:
    of = {(row["waiting"], row["beside_another"]): sorted(row["step_ms"]) for row in result["waiting"]}
    names = {"spin": "spin, OpenMP's default", "briefly": "spin briefly, then sleep"}
    rows = [
        (name, *[_median(of[kind, busy]) for busy in (False, True)])
        for kind, name in names.items()
        if (kind, False) in of
    ]
    return table("waiting threads | ms per token of 16 answers, alone: | beside another process:", rows)
