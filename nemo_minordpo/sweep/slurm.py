"""A sweep on a cluster: the runs become a job array, preceded by the reference and followed by the report."""

import os
import shlex
import subprocess
from pathlib import Path

from nemo_minordpo.errors import UserError
from nemo_minordpo.files import write_text
from nemo_minordpo.sweep.config import Experiment
from nemo_minordpo.sweep.grid import runs_of
from nemo_minordpo.sweep.stages import (
    base_score,
    evaluation_arguments,
    own_overrides,
    questions_of,
    score_arguments,
    shared_overrides,
)

# shared stages that the submitting machine skips: they become jobs, or are left out
SUBMITTED = ("verify", "evaluate-base")
_LAUNCHERS = Path(__file__).parents[2] / "launchers"


def submit(settings: Experiment, *, limit: int) -> None:
    """Write the runs to a file, one per line, and pass it to launchers/sweep.sh.

    Args:
        settings: the experiment; its pairs and .nemo must exist.
        limit: number of simultaneous runs.

    Raises:
        ValueError: there is no launchers folder next to the package, or sbatch refuses a job.
    """
    script = _LAUNCHERS / "sweep.sh"
    if not script.is_file():
        raise UserError(f"{script}: no such file; submit jobs from a checkout of the project, which has the launchers")
    runs = Path(settings.work) / "runs.txt"
    lines = [shlex.join(own_overrides(settings, run)) for run in runs_of(settings.sweep)]
    write_text(runs, "".join(f"{line}\n" for line in lines))
    report = Path(settings.work) / "report"
    environment = {
        **os.environ,
        "MINORDPO_BASE_MODEL": settings.model_folder,
        "MINORDPO_BASE_SCORE": str(base_score(settings)),
        "MINORDPO_QUESTIONS": str(questions_of(settings)),
        "MINORDPO_EVALUATE_ARGS": shlex.join(evaluation_arguments(settings)),
    }
    if settings.score is not None:
        environment["MINORDPO_SCORE_ARGS"] = shlex.join(score_arguments(settings))
    command = [str(script), str(runs), str(limit), str(report), *shared_overrides(settings)]
    if subprocess.run(command, env=environment, check=False).returncode != 0:
        raise UserError(f"{script} failed; squeue shows the jobs that it submitted before")
