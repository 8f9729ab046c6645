"""What a build tells on the terminal."""

import json
from pathlib import Path

from rich.console import Console
from rich.text import Text

from nemo_minordpo.prepare.parts import Part
from nemo_minordpo.prepare.statistics import statistics_table
from nemo_minordpo.records import Manifest, PreferencePair

_REASONS_SHOWN = 3
_SAMPLES_SHOWN = 5
_TAIL_CHARACTERS = 700  # of a prompt in a sample: few-shot prompts are long, and their end is what counts


def say(text: str) -> None:
    """A line beside the output, for the user."""
    Console(stderr=True).print(Text(text), soft_wrap=True)


def show_data_set(output: Path, manifest: Manifest, samples: list[tuple[str, str]]) -> None:
    """Counts, reasons, statistics, and what the pairs look like."""
    counts = manifest.counts
    lines = [
        f"{counts['rows']} rows: {counts['pairs']} pairs ({counts['train']} train, {counts['validation']} validation), "
        f"{counts['rejected']} rejected -> {output}"
    ]
    if counts["validation"] < manifest.settings["num_validation"]:
        asked = manifest.settings["num_validation"]
        lines.append(f"  {asked} validation pairs were asked for: no question that is left has so few pairs")
    lines += _rejected(output, manifest)
    if counts["repeated_questions"]:
        lines.append(
            f"  {counts['repeated_questions']} pairs repeat a question; its pairs are on one side of the split"
        )
    lines += [
        f"  {number} pairs: {name[len('note: ') :]}" for name, number in counts.items() if name.startswith("note: ")
    ]
    # Text: brackets in paths and prompts are no markup. soft_wrap: a path stays whole for copying.
    console = Console()
    console.print(Text("\n".join(lines)), soft_wrap=True)
    console.print(statistics_table(json.loads((output / "statistics.json").read_text())))
    console.print(Text("\n".join([*_shown(samples), *_first_pair(output)])), soft_wrap=True)


def _rejected(output: Path, manifest: Manifest) -> list[str]:
    lines = [f"  rejected: {number} x {kind}" for kind, number in list(manifest.rejected.items())[:_REASONS_SHOWN]]
    with (output / "rejected_rows.jsonl").open(encoding="utf-8") as rows:
        for _, line in zip(range(_REASONS_SHOWN), rows, strict=False):
            row = json.loads(line)
            lines.append(f"  rejected {row['source']}: {row['reason']}")
    if manifest.counts["rejected"] > _REASONS_SHOWN:
        lines.append(f"  ... all of them in {output / 'rejected_rows.jsonl'}")
    return lines


def samples_of(paths: list[Path]) -> list[tuple[str, str]]:
    """Prompts (before, after) from all over the data set; none where prompts are not changed."""
    samples = []
    for path in paths:
        part = Part(path)
        samples += part.summary["samples"]
        part.close()
    return samples[:: max(1, len(samples) // _SAMPLES_SHOWN)][:_SAMPLES_SHOWN]


def _shown(samples: list[tuple[str, str]]) -> list[str]:
    lines = []
    for before, after in samples:
        lines += ["--- a prompt before", _tail(before), "--- after", after.rstrip("\n")]
    return lines


def _tail(text: str) -> str:
    cut = len(text) - _TAIL_CHARACTERS
    return text.rstrip("\n") if cut <= 0 else f"[{cut:,} characters] ...{text[cut:]}".rstrip("\n")


def _first_pair(output: Path) -> list[str]:
    with (output / "train.jsonl").open(encoding="utf-8") as lines:
        pair = PreferencePair.from_json(next(lines))
    return [
        "--- prompt of the first pair", pair.prompt.rstrip("\n"),
        "--- chosen", pair.chosen_response, "--- rejected", pair.rejected_response,
    ]  # fmt: skip
