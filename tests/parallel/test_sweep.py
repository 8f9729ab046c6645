"""A sweep as in the paper: losses x betas x learning rates, 60 runs, a single evaluation of the reference."""

import itertools
import json

from tests.parallel.conftest import spawn
from tests.parallel.runs_of import job

LOSSES, BETAS, RATES = ("dpo", "dpop", "minordpo"), (0.02, 0.04, 0.06, 0.08, 0.1, 0.2, 0.3, 0.4, 0.5, 1.0), (1e-6, 1e-5)


def test_sixty_runs_evaluate_the_reference_once(workspace):
    place = workspace / "sweep"
    names = []
    jobs = []
    for loss, beta, rate in itertools.product(LOSSES, BETAS, RATES):
        names.append(f"sweep/{loss}_{beta}_{rate}")
        overrides = [
            f"model.dpo.preference_loss={loss}", f"model.dpo.ref_policy_kl_penalty={beta}", f"model.optim.lr={rate}",
            "trainer.dpo.max_steps=2", "trainer.dpo.save_nemo=false", f"model.dpo.reference_cache={place}/kept",
        ]  # fmt: skip
        jobs.append(job(workspace, names[-1], overrides))
    spawn(workspace, ranks=1, jobs=jobs, log="sweep")
    assert len(names) == 60
    said = (workspace / "log_sweep_0.txt").read_text()
    assert said.count("evaluating 22 pairs") == 1
    assert said.count("evaluating 5 pairs") == 1  # validation
    assert len(list((place / "kept").glob("*.safetensors"))) == 2
    second_losses = set()
    for name in names:
        first, second, *_ = (
            json.loads(line)["values"] for line in (workspace / name / "metrics.jsonl").read_text().splitlines()
        )
        assert first["rewards/margin"] == 0.0
        second_losses.add(second["loss"])
    # the runs differ, except that DPO and DPOP agree as long as no chosen response falls below the reference
    assert len(second_losses) >= 40
