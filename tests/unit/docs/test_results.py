"""From a report to a table of the pages."""

from tests.benchmarks.sweep_results import tables_of
from tests.benchmarks.tables.cpu import benchmark, benchmark_short
from tests.benchmarks.tables.markdown import table
from tests.benchmarks.tables.sweeps import comparisons, grid, scores, seeds

REPORT = """# Report of `minordpo sweep small`

dpo broke | at one setting.

| model | strict, % (95 % interval) | degenerate, % | rewards/chosen | rewards/rejected | margin |
|---|---:|---:|---:|---:|---:|
| base | 75.4 (71.4-79.0) | 0.0 | - | - | - |
| dpo, beta 0.02, lr 0.001, seed 1 | 0.8 (0.3-2.0) | 8.0 | -62.07 | -105.48 | +43.42 |
| dpo, beta 0.02, lr 0.001, seed 2 | 1.8 (0.9-3.4) | 4.0 | -54.37 | -94.31 | +39.94 |
| dpop, beta 0.02, lr 0.001 | 82.6 (79.0-85.7) | 0.0 | +0.30 | -8.75 | +9.04 |
| minordpo, beta 0.02, lr 0.001 | 84.2 (80.7-87.1) | 4.9 | +0.38 | -7.03 | +7.42 |

## Health

| run | state |
|---|---:|
| dpo | complete |
"""


def test_tables_are_found_by_their_headings():
    found = tables_of(REPORT)
    assert list(found) == ["Report", "Health"]
    assert found["Health"] == {"columns": ["run", "state"], "rows": [["dpo", "complete"]]}
    assert found["Report"]["rows"][0][:2] == ["base", "75.4 (71.4-79.0)"]


def test_seeds_of_a_setting_stand_in_one_cell():
    last = grid({"tables": tables_of(REPORT)}).splitlines()[2:]
    assert last == ["| 0.001 | 0.02 | 0.8, 1.8 (8, 4 % repeat themselves) | 82.6 | 84.2 |"]


def test_scores_take_their_columns_by_name():
    assert scores({"tables": tables_of(REPORT)}).splitlines()[2] == "| base | 75.4 (71.4-79.0) | 0.0 | - | - | - |"


def test_columns_are_aligned_as_they_are_named():
    assert table("a | b:", [(1, 2.5)]) == "| a | b |\n| --- | ---: |\n| 1 | 2.5 |\n"


def test_a_trainer_that_was_not_measured_is_a_dash():
    trainers = {"ours": {"pairs_per_s": 8.0, "rss_peak_gib": 1.6}, "nemo-aligner 0.7.0": {"rss_peak_gib": 2.9}}
    case = {"model": "30M", "pairs": "zero-shot", "tensor_parallel": 2, "global_batch_size": 16}
    result = {
        "case": {"name": "30M/tp2", **case}, "results": trainers, "measured": True,
        "speed_up": {"ours": 1.0, "nemo-aligner 0.7.0": 12.0},
    }  # fmt: skip
    row = benchmark_short([result]).splitlines()[2]
    assert row == "| 30M, zero-shot, TP=2, 16 pairs per step | 8.00 | 12.0x | - | 1.6 / 2.9 / - |"
    another = {**result, "speed_up": {"ours": 1.0, "nemo-aligner 0.7.0": 7.0}}
    assert benchmark_short([result, another]).splitlines()[2:] == [row.replace("12.0x", "7.0x-12.0x")]
    # the control: rounds that differ too much do not count
    assert benchmark_short([result, {**another, "measured": False}]).splitlines()[2:] == [row]


def test_each_processor_has_a_table_with_its_peaks_and_load():
    row = {"seconds": 2.0, "fastest": 1.0, "slowest": 3.0, "pairs_per_s": 8.0, "rss_peak_gib": 1.5}
    case = {"model": "30M", "pairs": "zero-shot", "tensor_parallel": 1, "global_batch_size": 16}
    peaks = {"torch": {"float32": 200.0, "bfloat16": 60.0}, "instead": {"float32": 430.0, "bfloat16": 400.0}}
    after = {"torch": {"float32": 190.0, "bfloat16": 62.0}, "instead": {"float32": 420.0, "bfloat16": 410.0}}
    machine = {"processor": "EPYC", "gflops_before": peaks, "gflops_after": after, "load_of_others": 0.04}
    given = {
        "case": case,
        "results": {"ours": row},
        "speed_up": {"ours": 1.0},
        "spread": {"ours": 3.0},
        "measured": False,
    }
    text = benchmark([{**given, "machine": machine}, {**given, "machine": {"processor": "Xeon"}}])
    assert (
        "**EPYC.** Matrix products, GFLOP/s: float32 by torch 190-200, by oneDNN 420-430, bfloat16 by torch 60-62, in "
        "float32 and rounded 400-410. Load by other processes: at most 4% of all cores.\n"
    ) in text
    assert "**Xeon.** Peaks and load were not recorded.\n" in text
    assert (
        "16 pairs per step; not measured: rounds vary 3.0x | nemo-minordpo | 2.00 (1.00-3.00) | 8.00 | (1.0x) |" in text
    )


SEEDS = """
## Scores

| model | seeds | strict, % (95 % interval) | degenerate, % (95 % interval) | strict over seeds and problems, % (95 % interval) |
|---|---:|---:|---:|---:|
| base | - | 75.4 (71.4-79.0) | 0.0 (0.0-0.8) | - |
| dpo, lr 0.001 | 5 | 0.9 (0.4-2.2) | 22.4 (15.0-30.2) | 0.9 (0.0-2.0) |

## Paired tests

| model | against | at 5 % | difference, points (95 % interval) | p | p after Holm's correction | accuracy |
|---|---:|---:|---:|---:|---:|---:|
| dpo, lr 0.001 | base | lower | -74.5 (-78.3 to -70.7) | 1e-10 | 4e-09 | strict |
| dpo, lr 0.001 | base | lower | -74.4 (-78.3 to -70.6) | 1e-10 | 4e-09 | flexible |
"""  # noqa: E501


def test_scores_over_seeds_and_tests_of_strict_accuracy():
    report = {"tables": tables_of(SEEDS)}
    assert seeds(report).splitlines()[2:] == [
        "| base | - | 75.4 (71.4-79.0) | 0.0 (0.0-0.8) |",
        "| dpo, lr 0.001 | 5 | 0.9 (0.0-2.0) | 22.4 (15.0-30.2) |",
    ]
    assert comparisons(report).splitlines()[2:] == ["| dpo, lr 0.001 | base | -74.5 (-78.3 to -70.7) | 4e-09 | lower |"]
