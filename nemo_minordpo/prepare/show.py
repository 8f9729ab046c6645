"""The report of a build on the terminal."""

import json
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from nemo_minordpo import file_names
from nemo_minordpo.prepare.data_set import REJECTED_FILE
from nemo_minordpo.prepare.statistics import statistics_table
from nemo_minordpo.prepare.tally import SAMPLES, Tally
from nemo_minordpo.records import Manifest, PreferencePair

_REASONS_SHOWN = 3
_NAMES_SHOWN = 30


def show(report: list[Text | Table]) -> None:
    console = Console()
    for piece in report:
        console.print(piece, soft_wrap=True)  # paths are not wrapped, so that they can be copied


def report_of(folder: Path, output: Path, *, manifest: Manifest, tally: Tally) -> list[Text | Table]:
    """Counts, reasons, statistics, and example pairs.

    Args:
        folder: where the data set is now.
        output: where it will be.
        manifest: manifest of the data set.
        tally: tally of its rows.
    """
    counts = manifest.counts
    lines = [
        f"{counts['rows']} rows: {counts['pairs']} pairs ({counts['train']} train, {counts['validation']} validation), "
        f"{counts['rejected']} rejected -> {output}"
    ]
    if counts["validation"] < manifest.settings["num_validation"]:
        asked = manifest.settings["num_validation"]
        lines.append(f"  {asked} validation pairs were requested: every remaining question has too many pairs to fit")
    lines += _rejected(folder, output, manifest)
    if counts["repeated_questions"]:
        lines.append(
            f"  {counts['repeated_questions']} pairs repeat a question; "
            "all pairs of a question are on the same side of the split"
        )
    lines += _notes(tally)
    if manifest.unread:
        names = [f"{name} ({number:,})" for name, number in manifest.unread.items()]
        more = f", and {len(names) - _NAMES_SHOWN} more in manifest.json" if len(names) > _NAMES_SHOWN else ""
        lines.append(f"  not read (number of rows): {', '.join(names[:_NAMES_SHOWN])}{more}")
    # Text, so that brackets in paths and prompts are not read as markup.
    return [
        Text("\n".join(lines)),
        statistics_table(json.loads((folder / "statistics.json").read_text())),
        Text("\n".join([*_samples(tally.samples), *_first_pair(folder)])),
    ]


def _notes(tally: Tally) -> list[str]:
    """The number of pairs with each note, and the first of them if the note has details."""
    lines = []
    for note, (number, (place, *more)) in tally.notes.items():
        lines += [f"  {number} pairs: {note}" + (f"; the first is {place}" if more else "")]
        lines += [f"    {line}" for line in more]
    return lines


def _rejected(folder: Path, output: Path, manifest: Manifest) -> list[str]:
    lines = [f"  rejected: {number} x {kind}" for kind, number in list(manifest.rejected.items())[:_REASONS_SHOWN]]
    with (folder / REJECTED_FILE).open(encoding="utf-8") as rows:
        for _, line in zip(range(_REASONS_SHOWN), rows, strict=False):
            row = json.loads(line)
            lines.append(f"  rejected {row['source']}: {row['reason']}")
    if manifest.counts["rejected"] > _REASONS_SHOWN:
        lines.append(f"  ... all of them in {output / 'rejected_rows.jsonl'}")
    return lines


def _samples(samples: list[tuple[str, str]]) -> list[str]:
    """Prompts before and after, from across the data set; empty if prompts are unchanged."""
    lines = []
    for before, after in samples[:: max(1, len(samples) // SAMPLES)][:SAMPLES]:
        lines += ["--- a prompt before", before, "--- after", after.rstrip("\n")]
    return lines


def _first_pair(folder: Path) -> list[str]:
    with (folder / file_names.TRAIN).open(encoding="utf-8") as lines:
        pair = PreferencePair.from_json(next(lines))
    return [
        "--- prompt of the first pair", pair.prompt.rstrip("\n"),
        "--- chosen", pair.chosen_response, "--- rejected", pair.rejected_response,
    ]  # fmt: skip
