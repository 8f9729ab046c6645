"""The launchers on a real Slurm: two of three virtual nodes, two ranks a node.

`python -m tests.slurm.faults` injects all faults; these tests use the quickest ones.
"""

import json
import re
import shutil
import sys
import tarfile
import time

import pytest

from tests.slurm.cluster import why_not
from tests.slurm.faults import ROOT, STEPS, Job, prepared, run_with_fault, same_bits

LAUNCHERS = sorted((ROOT / "launchers").glob("*.sub"))

_LACKING = why_not()
pytestmark = pytest.mark.skipif(bool(_LACKING), reason=_LACKING)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    with prepared(tmp_path_factory.mktemp("slurm"), num_nodes=3) as (cluster, inputs):
        yield cluster, inputs


@pytest.fixture(scope="module")
def whole(place):
    """An undisturbed run, in a folder whose name is difficult for shells."""
    job = Job(*place, 'it\'s a "whole" run', "tp2pp2")
    assert job.wait_for_end() == "COMPLETED", job.log.read_text()[-4000:]
    return job


def test_sbatch_accepts_every_script(place):
    cluster, _ = place
    assert len(LAUNCHERS) == 4
    for script in LAUNCHERS:
        extra = ["--array=0-3%2"] if script.stem == "sweep" else []
        cluster.run("sbatch", "--test-only", *extra, str(script), "KEY=VALUE")


def test_arguments_arrive_unchanged(whole):
    assert (whole.run / "model.nemo").exists()
    config = (whole.run / "config.yaml").read_text()
    assert "whole" in config
    assert [line.step for line in whole.steps()] == list(range(1, STEPS + 1))


def test_the_log_says_what_happened(whole):
    log = whole.log.read_text()
    for text in (": start, ", "start 1: 2 x 2 ranks, node1:", f"step {STEPS}: loss", ": complete", "end, exit code 0"):
        assert text in log
    assert "nodes x 2 ranks: TP=2 x PP=2 x DP=1" in log
    ranks = sorted(path.name for path in (whole.run / "logs").glob("*/rank_*.log"))
    assert ranks == [f"rank_{rank}.log" for rank in range(4)]


@pytest.mark.long
@pytest.mark.parametrize("kind", ["rank killed", "scontrol requeue", "truncated checkpoint", "node restarted"])
def test_a_fault_injected_run_ends_bit_identical(place, whole, kind):
    outcome = run_with_fault(*place, kind, "tp2pp2", whole, seed=1)
    assert outcome.state == "COMPLETED", outcome
    assert outcome.bits_equal, outcome
    assert outcome.attempts == 2
    if kind in ("rank killed", "truncated checkpoint"):
        assert "the process ended without a message: Killed" in outcome.cause


def test_impossible_settings_start_no_ranks(place):
    job = Job(*place, "refused", "tp2pp2", more=["model.tensor_model_parallel_size=3"])
    assert job.wait_for_end() == "FAILED"
    log = job.log.read_text()
    assert "nearest layouts of 4 ranks that work" in log
    assert "start 1" not in log
    assert "end, exit code 2" in log


@pytest.mark.long
def test_the_launcher_gives_up_on_a_run_that_crashes_at_once(place, tmp_path):
    """The .nemo has a configuration, so the plan finds no error, but no weights."""
    cluster, inputs = place
    with tarfile.open(inputs.nemo) as archive:
        archive.extractall(tmp_path / "base", filter="data")
    shutil.rmtree(tmp_path / "base/model_weights")
    base = f"pretrained_checkpoint.restore_from_path={tmp_path}/base"
    job = Job(*place, "crashes", "tp2pp2", more=[base], MINORDPO_MAX_CRASHES="1")
    assert job.wait_for_end() == "FAILED"
    log = job.log.read_text()
    assert "start 2: " in log
    assert "start 3: " not in log
    assert "giving up after 2 ends without a new checkpoint (crashes)" in log
    status = cluster.run(sys.executable, "-m", "nemo_minordpo", "status", str(job.run), check=False)
    # a rank can fail before or after the first one has claimed the attempt
    assert re.search(r"(before the first step|during set-up, failed): rank \d", status)
    assert "model_weights" in status


@pytest.mark.long
def test_a_non_finite_value_is_not_retried(place):
    job = Job(*place, "diverges", "tp2pp2", more=["model.optim.lr=1e30", "model.optim.sched.warmup_ratio=0"])
    assert job.wait_for_end() == "FAILED"
    log = job.log.read_text()
    assert "start 1: " in log
    assert "start 2: " not in log
    assert "giving up: the same settings and inputs would fail again" in log
    assert "end, exit code 2" in log
    assert re.search(r"\nfailed; step 2: loss, .* not finite for 16 of 16 pairs: ", log)


SITE = """
export MINORDPO_REQUEUE=exit MINORDPO_CONTAINER=registry#image:1 MINORDPO_MOUNTS=/data:/data
srun() {  # like pyxis: consumes its own options and passes on the rest
  local arguments=() one
  for one in "$@"; do
    case $one in --container-*) echo "$one" >> %s ;; *) arguments+=("$one") ;; esac
  done
  command srun "${arguments[@]}"
}
"""


@pytest.mark.long
def test_another_site(place, whole, tmp_path):
    """GPUs, a container, and requeueing by exit code, all set through the environment and a site file."""
    (tmp_path / "site.sh").write_text(SITE % f"{tmp_path}/container")
    job = Job(
        *place, "another site", "tp2pp2",
        SBATCH_GPUS_PER_NODE="2", SBATCH_PARTITION="main", MINORDPO_SITE=f"{tmp_path}/site.sh",
    )  # fmt: skip
    job.wait_for_step(6)
    assert "TresPerNode=gres:gpu:2" in place[0].run("scontrol", "show", "job", job.id)
    job.cluster.run("scancel", "--batch", "--signal=USR1", job.id)
    assert job.wait_for_end() == "COMPLETED", job.log.read_text()[-4000:]
    assert "end, exit code 85, after SIGUSR1" in job.log.read_text()
    assert same_bits(job.run, whole.run)
    options = set((tmp_path / "container").read_text().splitlines())
    assert options == {
        "--container-image=registry#image:1",
        f"--container-mounts={ROOT},{place[1].runs},/data:/data",
        f"--container-workdir={place[1].runs}",
    }


def wait_for_jobs(cluster, *, seconds=420):
    """Wait until the queue is empty; returns {job: state}."""
    until = time.monotonic() + seconds
    while cluster.run("squeue", "-h"):
        assert time.monotonic() < until, cluster.run("squeue")
        time.sleep(0.5)
    lines = cluster.run("scontrol", "show", "job", "--oneliner").splitlines()
    fields = [dict(word.partition("=")[::2] for word in line.split()) for line in lines]
    return {job["JobId"]: job["JobState"] for job in fields}


@pytest.mark.long
def test_the_whole_pipeline_as_a_chain_of_jobs(place, tmp_path):
    cluster, inputs = place
    write_questions(tmp_path / "questions.jsonl")
    submitted = cluster.run(
        str(ROOT / "launchers/pipeline.sh"), str(inputs.nemo.parent / "hf"), "questions.jsonl", "run",
        *few_steps(inputs), cwd=tmp_path, MINORDPO_NODES="1",
        SBATCH_GPUS_PER_NODE="1", MINORDPO_CPU_SBATCH_ARGS="--gpus-per-node=0 --comment=cpu",
    )  # fmt: skip
    last = submitted.partition("last job: ")[2].partition(";")[0]
    jobs = [cluster.run("scontrol", "show", "job", str(int(last) - before)) for before in range(4, -1, -1)]
    assert ["Comment=cpu" in job for job in jobs] == [True, False, False, True, False]
    assert ["gres:gpu:1" in job for job in jobs] == [False, True, True, False, True], jobs
    states = wait_for_jobs(cluster)
    logs = "".join(log.read_text() for log in tmp_path.glob("*.log"))
    names = {log.name.rpartition("-")[0] for log in tmp_path.glob("*.log")}
    assert names == {"import-hf", "reference", "minordpo", "export-hf", "evaluate"}
    assert [states[str(int(last) - before)] for before in range(5)] == ["COMPLETED"] * 5, logs[-4000:]
    assert json.loads((tmp_path / "run/evaluation/score.json").read_text())["num_questions"] == 2
    assert (tmp_path / "run.nemo").exists()


def write_questions(path):
    rows = [{"question": f"What is {n} plus 1?", "answer": f"#### {n + 1}"} for n in range(2)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.long
def test_a_sweep_has_one_reference_and_a_report(place, tmp_path):
    """With questions, every run and the base model are also evaluated."""
    cluster, inputs = place
    write_questions(tmp_path / "questions.jsonl")
    (tmp_path / "runs.txt").write_text(
        "# two losses\n"
        "model.dpo.preference_loss=dpo exp_manager.explicit_log_dir=runs/dpo\n\n"
        "model.dpo.preference_loss=minordpo exp_manager.explicit_log_dir=runs/minordpo\n"
    )
    cluster.run(
        str(ROOT / "launchers/sweep.sh"), "runs.txt", "2", "report",
        f"pretrained_checkpoint.restore_from_path={inputs.nemo}", *few_steps(inputs), cwd=tmp_path,
        MINORDPO_QUESTIONS="questions.jsonl", MINORDPO_EVALUATE_ARGS="--max-new-tokens 16",
        MINORDPO_BASE_MODEL=str(inputs.nemo.parent / "hf"), MINORDPO_BASE_SCORE="base",
        MINORDPO_SCORE_ARGS=f"{inputs.pairs} --reference {inputs.nemo.parent / 'hf'} --limit 3",
    )  # fmt: skip
    wait_for_jobs(cluster)
    logs = "".join(log.read_text() for log in tmp_path.glob("*.log"))
    assert len(list((tmp_path / "runs/reference_cache").glob("*.safetensors"))) == 1, logs[-4000:]
    assert logs.count("; evaluating ") == 1
    table = (tmp_path / "report/report.md").read_text()
    assert "| dpo |" in table
    assert "| minordpo |" in table
    assert "| base |" in table
    for loss in ("dpo", "minordpo"):
        assert (tmp_path / f"runs/{loss}/model.nemo").exists()
        assert json.loads((tmp_path / f"runs/{loss}/evaluation/score.json").read_text())["num_questions"] == 2
        assert json.loads((tmp_path / f"runs/{loss}/scored_pairs/pair_score.json").read_text())["num_pairs"] == 3


def few_steps(inputs):
    return [
        f"model.data.data_prefix.train=[{inputs.pairs}]",
        "model.dpo.ref_policy_kl_penalty=0.1", "model.global_batch_size=8", "trainer.dpo.max_steps=2",
        "exp_manager.create_tensorboard_logger=false",
    ]  # fmt: skip
