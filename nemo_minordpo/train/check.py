"""`python -m nemo_minordpo.train.check [--runs FILE] KEY=VALUE ...`: settings, before a job is submitted with them.

FILE has a line of overrides a run, quoted as for a shell; those on the command line are for all runs. Opens no other
file. Exit code 2: a setting is wrong.
"""

import shlex
import sys
from pathlib import Path

from nemo_minordpo.errors import UserError
from nemo_minordpo.files import read_lines
from nemo_minordpo.train.launch import read_settings


def problems_of_runs(overrides: list[str], runs: Path | None) -> list[str]:
    """What is wrong with the settings of each run, and with those of all runs once."""
    if runs is None:
        return _problems(overrides)
    found: dict[str, str] = {}  # complaint: where it was first found
    for number, line in read_lines(runs):
        try:
            own = shlex.split(line, comments=True)
        except ValueError as error:
            found.setdefault(f"{line.strip()}: {error}", f"{runs}:{number}")
            continue
        if own:
            for problem in _problems([*overrides, *own]):
                found.setdefault(problem, f"{runs}:{number}")
    return [f"{where}: {problem}" for problem, where in found.items()]


def _problems(overrides: list[str]) -> list[str]:
    try:
        read_settings(overrides)
    except UserError as error:
        return str(error).splitlines()
    return []


def main(arguments: list[str]) -> int:
    """Print what is wrong; the exit code."""
    runs = Path(arguments[1]) if arguments[:1] == ["--runs"] else None
    problems = problems_of_runs(arguments if runs is None else arguments[2:], runs)
    for problem in problems:
        sys.stderr.write(f"error: {problem}\n")
    return 2 if problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
