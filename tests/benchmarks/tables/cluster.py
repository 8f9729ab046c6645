"""Results of `make faults` on virtual Slurm nodes."""

import statistics
from typing import Any

from tests.benchmarks.tables.markdown import table


def faults(outcomes: list[dict[str, Any]]) -> str:
    return table(
        "fault | layout | at step: | ended | same bits | steps lost: | Slurm's part, s: | launcher's part, s: "
        "| attempts: | reported",
        [
            (
                one["fault"],
                one["layout"],
                one["at_step"],
                one["state"],
                "yes" if one["bits_equal"] else "NO",
                one["steps_lost"],
                f"{one['slurm_seconds']:.1f}",
                f"{one['our_seconds']:.1f}",
                one["attempts"],
                one["cause"].replace("|", "\\|"),
            )
            for one in outcomes
        ],
    )


def times(outcomes: list[dict[str, Any]]) -> str:
    same = sum(one["bits_equal"] for one in outcomes)
    parts = [
        f"{whose} took {statistics.median(values):.1f} s (median; {min(values):.1f} to {max(values):.1f})"
        for whose, key in (("Slurm", "slurm_seconds"), ("the launcher", "our_seconds"))
        if (values := [one[key] for one in outcomes if one[key] == one[key]])
    ]
    return (
        f"{same} of {len(outcomes)} jobs ended with the metrics and weights of the undisturbed run, bit for bit.\n"
        f"Of the time from the fault until training continued, {' and '.join(parts)}.\n"
    )
