"""`python -m nemo_minordpo.train.check [--runs FILE] KEY=VALUE ...`: checks settings before a job is submitted.

FILE has one line of overrides per run, quoted as for a shell; those on the command line apply to all runs. Opens no
other file. Exit code 2 if a setting is wrong.
"""

import shlex
import sys
from pathlib import Path

from nemo_minordpo.errors import UserError
from nemo_minordpo.files import read_lines
from nemo_minordpo.train.launch import read_settings


def problems_of_runs(overrides: list[str], runs: Path | None) -> list[str]:
    """Problems with the settings of each run; problems that runs share are listed once."""
    if runs is None:
        return _problems(overrides)
    first_seen: dict[str, str] = {}  # problem -> place
    for number, line in read_lines(runs):
        try:
            own = shlex.split(line, comments=True)
        except ValueError as error:
            first_seen.setdefault(f"{line.strip()}: {error}", f"{runs}:{number}")
            continue
        if own:
            for problem in _problems([*overrides, *own]):
                first_seen.setdefault(problem, f"{runs}:{number}")
    return [f"{place}: {problem}" for problem, place in first_seen.items()]


def _problems(overrides: list[str]) -> list[str]:
    try:
        read_settings(overrides)
    except UserError as error:
        return str(error).splitlines()
    return []


def main(arguments: list[str]) -> int:
    """Print the problems; returns the exit code."""
    runs = Path(arguments[1]) if arguments[:1] == ["--runs"] else None
    problems = problems_of_runs(arguments if runs is None else arguments[2:], runs)
    for problem in problems:
        sys.stderr.write(f"error: {problem}\n")
    return 2 if problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
