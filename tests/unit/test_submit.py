"""launchers/pipeline.sh and sweep.sh, with a stand-in for sbatch that only records what is submitted."""

import subprocess
import sys
from pathlib import Path

import pytest

from nemo_minordpo.config import hydra_value, read_override

LAUNCHERS = Path(__file__).parents[2] / "launchers"
SETTINGS = ["model.data.data_prefix.train=[x.jsonl]", "model.dpo.ref_policy_kl_penalty=0.1"]


@pytest.fixture
def submit(tmp_path, monkeypatch):
    """Run a launcher; returns (exit code, its messages, the jobs' arguments)."""
    sbatch = tmp_path / "bin/sbatch"
    sbatch.parent.mkdir()
    sbatch.write_text(f'#!/bin/bash\n{{ printf "%s\\0" "$@"; echo; }} >> {tmp_path}/jobs; echo 7\n')
    sbatch.chmod(0o755)
    monkeypatch.setenv("PATH", f"{sbatch.parent}:/usr/bin:/bin")
    monkeypatch.setenv("MINORDPO_PYTHON", sys.executable)
    monkeypatch.chdir(tmp_path)

    def run(script, *arguments):
        (tmp_path / "jobs").write_text("")
        done = subprocess.run([LAUNCHERS / script, *arguments], capture_output=True, text=True)
        jobs = [line.split("\0")[:-1] for line in (tmp_path / "jobs").read_text().splitlines()]
        return done.returncode, done.stderr, jobs

    return run


def test_a_pipeline_with_an_override_that_hydra_cannot_read_is_not_submitted(submit):
    code, said, jobs = submit(
        "pipeline.sh", "hf", "q.jsonl", "run", *SETTINGS, "model.dpo.reference_cache=it's a cache"
    )
    assert (code, jobs) == (2, [])
    assert said == (
        "error: model.dpo.reference_cache=it's a cache: Hydra reads ' in quotes only; quote it: "
        "\"model.dpo.reference_cache='it\\'s a cache'\"\n"
    )


@pytest.mark.parametrize("run", ["runs/größe", "it's a \\run=1,2\\"])
def test_a_pipeline_works_in_any_folder(submit, run):
    code, said, jobs = submit("pipeline.sh", "hf", "q.jsonl", run, *SETTINGS)
    assert code == 0, said
    assert len(jobs) == 5
    (training,) = (job for job in jobs if any(word.endswith("minordpo.sub") for word in job))
    values = {override.key_or_group: override.value() for override in map(read_override, training[-4:])}
    assert values["exp_manager.explicit_log_dir"] == run
    assert values["pretrained_checkpoint.restore_from_path"] == f"{run}.nemo"


def test_a_sweep_is_checked_and_reports_on_its_folders(submit, tmp_path):
    folders = ["runs/größe", "it's a run", "plain"]
    shared = ["pretrained_checkpoint.restore_from_path=base.nemo", *SETTINGS]

    def with_seeds(key):
        lines = [f'{key}={n} "exp_manager.explicit_log_dir={hydra_value(name)}"\n' for n, name in enumerate(folders, 1)]
        (tmp_path / "runs.txt").write_text("".join(["# three\n", *lines]))
        return submit("sweep.sh", "runs.txt", "2", "report", *shared)

    code, said, jobs = with_seeds("model.sead")
    assert (code, jobs) == (2, [])
    assert said == "error: runs.txt:2: model.sead is not a setting; did you mean model.seed?\n"
    code, said, jobs = with_seeds("model.seed")
    assert code == 0, said
    report = jobs[-1]
    assert report[report.index(str(LAUNCHERS / "command.sub")) + 1 :][:4] == ["report", *folders]


def test_without_a_suitable_python_the_job_checks_the_settings(submit, monkeypatch):
    monkeypatch.setenv("MINORDPO_PYTHON", "/bin/false")
    code, said, jobs = submit("pipeline.sh", "hf", "q.jsonl", "run", *SETTINGS, "model.dpo.reference_cache=it's")
    assert (code, len(jobs)) == (0, 5)
    assert "this machine cannot check the settings; the job will" in said
