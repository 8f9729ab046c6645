"""A sweep on a cluster: the runs become an array of jobs, with the reference before and the report behind them."""

import os
import shlex
import subprocess
from pathlib import Path

from nemo_minordpo.errors import UserError
from nemo_minordpo.files import write_text
from nemo_minordpo.sweep.config import Experiment
from nemo_minordpo.sweep.grid import runs_of
from nemo_minordpo.sweep.stages import base_score, evaluation_arguments, own_overrides, questions_of, shared_overrides

# stages of all runs that are jobs, too, or that the user's own machine need not do
SUBMITTED = ("verify", "evaluate-base")
_LAUNCHERS = Path(__file__).parents[2] / "launchers"


def submit(settings: Experiment, *, limit: int) -> None:
    """Write the runs down, one a line, and hand them to launchers/sweep.sh.

    Args:
        settings: of the experiment, whose pairs and .nemo are there.
        limit: runs at a time.

    Raises:
        ValueError: no launchers beside the package, or sbatch refuses a job.
    """
    script = _LAUNCHERS / "sweep.sh"
    if not script.is_file():
        raise UserError(f"{script}: no such file: jobs are submitted from a checkout of the project, launchers and all")
    runs = Path(settings.work) / "runs.txt"
    lines = [shlex.join(own_overrides(settings, run)) for run in runs_of(settings.sweep)]
    write_text(runs, "".join(f"{line}\n" for line in lines))
    report = Path(settings.work) / "report"
    environment = {
        **os.environ,
        "MINORDPO_BASE_MODEL": settings.model or str(Path(settings.work) / "model"),
        "MINORDPO_BASE_SCORE": str(base_score(settings)),
        "MINORDPO_QUESTIONS": str(questions_of(settings)),
        "MINORDPO_EVALUATE_ARGS": shlex.join(evaluation_arguments(settings)),
    }
    command = [str(script), str(runs), str(limit), str(report), *shared_overrides(settings)]
    if subprocess.run(command, env=environment, check=False).returncode != 0:
        raise UserError(f"{script} failed; what it submitted before it did is in squeue")
