"""Where the trainer stops in a step: before the optimizer changes anything, or at least before anything is saved.

Importing NeMo takes 12 s and changes the process, so one process (`python test_finite_step.py`, below) takes all steps.
"""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def taken():
    result = subprocess.run(
        [sys.executable, __file__],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return json.loads(result.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", ["sound", "sound, with Megatron's optimizer", "sound, without a norm"])
def test_a_finite_step_is_taken(taken, name):
    error, optimizer_steps, steps_done = taken[name]
    assert (error, optimizer_steps, steps_done) == ("", 1, 1)


@pytest.mark.parametrize(
    ("name", "message", "optimizer_steps"),
    [
        ("pairs", "step 1: loss not finite for 1 of 4 pairs: pair ", 0),
        ("norm", "step 1: grad_norm is inf; weights whose gradient is not finite: 1, bias", 0),
        ("norm of Megatron's optimizer", "step 1: grad_norm is nan; weights whose gradient is not finite: 1, bias", 1),
    ],
)
def test_the_optimizer_does_not_step_on_a_known_bad_value(taken, name, message, optimizer_steps):
    error, moved, steps_done = taken[name]
    assert error.startswith(message)
    assert moved == optimizer_steps
    assert steps_done == 0


# --- below: the process that takes the steps ---


def _step(*, loss=0.5, norm=1.0, norm_of_step=None):
    """(the error, number of optimizer steps, number of steps that the run counts)."""
    from types import SimpleNamespace
    from unittest.mock import MagicMock, patch

    import torch

    from nemo_minordpo.config import compose, default_of, load
    from nemo_minordpo.core.metrics import PAIR_METRICS, ROWS
    from nemo_minordpo.train import trainer as module
    from nemo_minordpo.train.require_finite import NotFiniteError
    from tests.unit.train.arrays import PAIRS, batches_of

    overrides = [
        "pretrained_checkpoint.restore_from_path=base.nemo",
        "model.data.data_prefix.train=[nowhere.jsonl]",
        "exp_manager.explicit_log_dir=nowhere",
        "model.dpo.ref_policy_kl_penalty=0.1",
    ]
    table = torch.zeros(len(PAIR_METRICS), len(PAIRS), dtype=torch.float64)
    table[ROWS["loss"], 2] = loss
    model = MagicMock(has_dropout=False)
    model.options.minordpo_floor = 0.0
    model.pair_metrics.return_value = model.gathered.return_value = table
    layer = torch.nn.Linear(2, 1)
    layer.weight.grad, layer.bias.main_grad = torch.ones(1, 2), torch.tensor([math.nan])
    model.get_model_module_list.return_value = [layer]
    host = MagicMock(model=model)
    host.reduce_and_clip.return_value = norm
    host.update_weights.return_value = norm_of_step
    train = batches_of(PAIRS)
    trainer = module.MinorDPOTrainer(
        config=load(compose(overrides)),
        host=host,
        train=train,
        validation=None,
        checkpoints=Path("nowhere"),
        throughput=SimpleNamespace(of=lambda work, seconds: {}),
        answers=None,
    )
    coming = SimpleNamespace(result=lambda: train.training_step(0, seed=default_of("model.seed")))
    error = ""
    with (
        patch.object(module, "peak_memory_gib", lambda: 0.0),
        patch.object(torch.distributed, "get_world_size", lambda: 1),
        patch.object(torch.distributed, "all_gather_object", lambda parts, own: parts.__setitem__(0, own)),
    ):
        try:
            line = trainer._train_step(coming)
            assert line.values.get("grad_norm") == (norm if norm_of_step is None else norm_of_step)
        except NotFiniteError as stop:
            error = str(stop)
    return error, host.update_weights.call_count, trainer.progress.step


def _main():
    from nemo_minordpo import host

    host.prepare()
    taken = {
        "sound": _step(),
        "sound, with Megatron's optimizer": _step(norm=None, norm_of_step=2.0),
        "sound, without a norm": _step(norm=None),
        "pairs": _step(loss=math.nan),
        "norm": _step(norm=math.inf),
        "norm of Megatron's optimizer": _step(norm=None, norm_of_step=math.nan),
    }
    sys.stdout.write(json.dumps(taken) + "\n")


if __name__ == "__main__":
    _main()
