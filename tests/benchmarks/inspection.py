"""`minordpo inspect` on generated pairs of the size and shape of MetaMath_DPO_FewShot: time and memory.

    python -m tests.benchmarks.inspection             # writes docs/results/inspect.json and fills the pages

400,000 pairs of about 3.1 kB, as tests/benchmarks/metamath.py generates them, in one file; one of a hundred is a copy
of the one before. They are searched for 500 questions of a test set, ten of which they contain. Memory is the sum over
all processes of the command (PSS), sampled five times per second.
"""

import argparse
import json
import shutil
import sys
from pathlib import Path
from typing import Any

from nemo_minordpo.prepare.arithmetic import arithmetic_problems
from tests.benchmarks.metamath import generated_rows, measured_command
from tests.benchmarks.tables import fill_pages

ROWS, COPIED, TESTS, CONTAINED = 400_000, 100, 500, 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--work", type=Path, default=Path("runs/bench/inspect"), help="folder for pairs and reports")
    parser.add_argument("--output", type=Path, default=Path("docs/results/inspect.json"), help="results file")
    parser.add_argument("--workers", type=int, default=2)
    given = parser.parse_args()
    generate(given.work, given.rows)
    given.output.write_text(json.dumps([run(given.work, workers=given.workers)], indent=1) + "\n")
    fill_pages()


def generate(work: Path, rows: int) -> None:
    """Pairs and test set; files with the same number of rows are reused."""
    done = work / f"{rows}.done"
    if done.exists():
        return
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    contained, line = [], ""
    with (work / "pairs.jsonl").open("w", encoding="utf-8") as out:
        for number, (_, row) in enumerate(generated_rows(rows)):
            if number % COPIED or not number:
                pair = {"prompt": row["prompt"], "chosen_response": row["chosen"], "rejected_response": row["rejected"]}
                line = json.dumps(pair) + "\n"
            if number % (rows // CONTAINED) == 1:
                contained.append(row["prompt"].rpartition("Question: ")[2].removesuffix("\nAnswer:"))
            out.write(line)
    others = arithmetic_problems(2)
    questions = contained + [next(others).question for _ in range(TESTS - len(contained))]
    (work / "test.jsonl").write_text("".join(json.dumps({"question": text}) + "\n" for text in questions))
    done.touch()


def run(work: Path, *, workers: int) -> dict[str, Any]:
    """Run the command once; returns seconds, peak memory in MiB, pairs and what the summary says of some flags."""
    output = work / "report"
    shutil.rmtree(output, ignore_errors=True)
    command = [
        sys.executable, "-m", "nemo_minordpo", "inspect", str(work / "pairs.jsonl"), "--test", str(work / "test.jsonl"),
        "--output", str(output), "--workers", str(workers), "--drop", "duplicate", "--drop", "near_duplicate",
        "--drop", "in_test",
    ]  # fmt: skip
    measured = measured_command(command)
    manifest = json.loads((output / "manifest.json").read_text())
    return {**measured, "workers": workers, "counts": manifest["counts"], "rejected": manifest["rejected"]}


if __name__ == "__main__":
    main()
