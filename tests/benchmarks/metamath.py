"""`minordpo prepare metamath` on generated data of the size and shape of MetaMath_DPO_FewShot: time and memory.

    python -m tests.benchmarks.metamath               # writes docs/results/prepare.json and fills the pages

394,000 rows of about 3.1 kB in three parquet files, like the data set; MetaMathQA as one JSON array. The questions are
generated, with 26 rewrites each; every prompt has four solved questions before the actual one. Memory is the sum over
all processes of the command (PSS), sampled five times per second.
"""

import argparse
import json
import random
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pyarrow
from pyarrow import parquet

from nemo_minordpo.prepare.arithmetic import arithmetic_problems
from nemo_minordpo.prepare.corruption_plain import corrupt_result
from tests.benchmarks.tables import fill_pages
from tests.unit.prepare.templates import QWEN, save_tokenizer

ROWS, REWRITES, FILES, SHOTS = 394_000, 26, 3, 4
_OPENINGS = ("Let me think about it.", "Here is how it goes.", "Take it step by step.", "First look at what is given.")
_REMARKS = (
    "This follows from what the question says about the numbers that are given in it, read one by one.",
    "We keep this result in mind, because it is needed for what comes next in the calculation.",
    "Now only the last part of the question remains to be answered, with what we have found until here.",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--work", type=Path, default=Path("runs/bench/metamath"), help="folder for data and pairs")
    parser.add_argument("--output", type=Path, default=Path("docs/results/prepare.json"), help="results file")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--only", nargs="*", help="names of cases; default: all")
    given = parser.parse_args()
    generate(given.work, given.rows)
    join = ["--metamathqa", str(given.work / "MetaMathQA-395K.json")]
    save_tokenizer(given.work / "tokenizer", QWEN)
    chat = ["--template", "chat", "--tokenizer", str(given.work / "tokenizer")]
    cases = {"join": join, "marker": ["--marker", "Question:"], "join, chat template": join + chat}
    results = []
    for name, options in cases.items():
        if given.only is None or name in given.only:
            results.append({"case": name, **run(given.work, options, workers=given.workers)})
    given.output.write_text(json.dumps(results, indent=1) + "\n")
    fill_pages()


def generate(work: Path, rows: int) -> None:
    """The two data sets; files with the same number of rows are reused."""
    done = work / f"{rows}.done"
    if done.exists():
        return
    shutil.rmtree(work, ignore_errors=True)
    (work / "data").mkdir(parents=True)
    made = generated_rows(rows)
    with (work / "MetaMathQA-395K.json").open("w", encoding="utf-8") as qa:
        qa.write("[\n")
        for number in range(FILES):
            path = work / "data" / f"train-{number:05}-of-{FILES:05}.parquet"
            writer = None
            for start in range(rows * number // FILES, rows * (number + 1) // FILES, 1000):
                end = min(start + 1000, rows * (number + 1) // FILES)
                block = [next(made) for _ in range(end - start)]
                qa.writelines(
                    ("" if start + place == 0 else ",\n") + json.dumps(row) for place, (row, _) in enumerate(block)
                )
                pairs = pyarrow.Table.from_pylist([pair for _, pair in block])
                writer = writer or parquet.ParquetWriter(path, pairs.schema)
                writer.write_table(pairs)
            assert writer is not None
            writer.close()
        qa.write("\n]\n")
    done.touch()


def generated_rows(count: int) -> Iterator[tuple[dict[str, str], dict[str, str]]]:
    """(row of MetaMathQA, row of MetaMath_DPO_FewShot)."""
    draw, problems, solved = random.Random(1), arithmetic_problems(1), []
    for number in range(count):
        rewrite = number % REWRITES
        if rewrite == 0:
            problem = next(problems)
            steps = problem.answer.rpartition("\n")
            lines = [line.split("<<")[0] + line.split(">>")[1] for line in steps[0].split("\n")]
            final = steps[2].removeprefix("#### ")
        opening = _OPENINGS[rewrite % len(_OPENINGS)]
        query = f"{problem.question} Please count with {rewrite + 2} in mind." if rewrite else problem.question
        answered = [f"{line} {remark}" for line, remark in zip(lines, _REMARKS * 2, strict=False)]
        response = "\n".join([f"{opening} (Way {rewrite}.)", *answered, f"#### {final}", f"The answer is: {final}"])
        solved.append(f"Question: {query}\nAnswer: {response}")
        del solved[:-50]
        shots = draw.sample(solved, min(SHOTS, len(solved)))
        pair = {
            "prompt": "\n\n".join([*shots, f"Question: {query}\nAnswer:"]),
            "chosen": response,
            "rejected": corrupt_result(response, seed=1, row=number).answer,
        }
        kind = "GSM_Rephrased" if rewrite else "GSM_AnsAug"
        yield {"query": query, "response": response, "type": kind, "original_question": problem.question}, pair


def run(work: Path, options: list[str], *, workers: int) -> dict[str, Any]:
    """Run the command once; returns seconds, peak memory in MiB and the manifest's counts."""
    output = work / "pairs"
    shutil.rmtree(output, ignore_errors=True)
    command = [
        sys.executable, "-m", "nemo_minordpo", "prepare", "metamath", str(work / "data"), str(output),
        "--num-validation", "1000", "--workers", str(workers), *options,
    ]  # fmt: skip
    measured = measured_command(command)
    counts = json.loads((output / "manifest.json").read_text())["counts"]
    return {**measured, "workers": workers, "counts": counts}


def measured_command(command: list[str]) -> dict[str, float]:
    """Run a command; returns seconds, CPU seconds and peak memory in MiB of all its processes."""
    start, cpu_start, peak = time.perf_counter(), _cpu_seconds(), 0
    with subprocess.Popen(command) as process:
        while process.poll() is None:
            peak = max(peak, _memory(process.pid))
            time.sleep(0.2)
    assert process.returncode == 0, command
    return {
        "seconds": time.perf_counter() - start,
        "cpu_seconds": _cpu_seconds() - cpu_start,
        "peak_mib": peak / 2**20,
    }


def _cpu_seconds() -> float:
    """CPU time of the commands that have ended, including their workers."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _memory(pid: int) -> int:
    """PSS of a process and its descendants; 0 if it has just ended."""
    total = 0
    try:
        for process in [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]:
            total += process.memory_full_info().pss
    except psutil.Error:
        return total
    return total


if __name__ == "__main__":
    main()
