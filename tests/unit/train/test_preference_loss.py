"""User-defined losses: what is rejected, their inputs, and their part in the run's identity."""

import itertools
import subprocess
import sys

import numpy as np
import pytest
import torch

from nemo_minordpo.config import DPOSection
from nemo_minordpo.core.losses import LOSSES, minordpo, needs_reference, sft
from nemo_minordpo.core.objective import options_of
from nemo_minordpo.core.pair_packing import PackedRow
from nemo_minordpo.errors import UserError
from nemo_minordpo.train import launch
from nemo_minordpo.train.data.dataset import MicroBatch
from nemo_minordpo.train.launch import read_settings
from nemo_minordpo.train.model.preference_loss import (
    loss_called,
    losses_of,
    pairs_of,
    require_usable_loss,
    source_of,
)

SIMPO = """
from torch.nn.functional import logsigmoid

def simpo(pairs, options):
    chosen = pairs.chosen_log_probs / pairs.chosen_num_tokens
    rejected = pairs.rejected_log_probs / pairs.rejected_num_tokens
    return -logsigmoid(options.beta * (chosen - rejected) - 0.5)

simpo.needs_reference = False
"""
OVERRIDES = [
    "pretrained_checkpoint.restore_from_path=base.nemo", "model.data.data_prefix.train=[train.jsonl]",
    "exp_manager.explicit_log_dir=run", "model.dpo.ref_policy_kl_penalty=0.1",
]  # fmt: skip
names = itertools.count()


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Writes a module to the current folder; returns its name."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))

    def write(source):
        name = f"losses_of_a_test_{next(names)}"
        (tmp_path / f"{name}.py").write_text(source)
        return name

    return write


def section(loss):
    return DPOSection(ref_policy_kl_penalty=0.1, preference_loss=loss)


def refused(loss):
    with pytest.raises(UserError) as error:
        require_usable_loss(section(loss))
    message = str(error.value)
    assert message.startswith(f"model.dpo.preference_loss={loss}")
    assert len(message.splitlines()) == 1
    return message


def test_a_loss_that_uses_lengths_and_no_reference(module):
    name = f"{module(SIMPO)}:simpo"
    require_usable_loss(section(name))
    assert not needs_reference(loss_called(name))


def test_built_in_losses_need_no_check_and_no_file():
    for name in LOSSES:
        require_usable_loss(section(name))
        assert source_of(section(name)) == {}
    assert loss_called("minordpo") is minordpo


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("return pairs.chosen_log_ratio.float()", "returns a tensor [2] of float32; a tensor [2] of float64"),
        ("return pairs.chosen_log_ratio.mean()", "returns a tensor [] of float64; a tensor [2]"),
        ("return [1.0, 2.0]", "returns list; a tensor [2] of float64, one value per pair, expected"),
        ("return (pairs.chosen_log_ratio - 0.5).log()", "returns [-inf, nan] for two ordinary pairs; finite numbers"),
        ("return pairs.chosen_log_ratio.detach()", "its values have no gradient"),
        ("return pairs.chosen_log_ratio * 0", "its values have no gradient"),
        ("return (pairs.chosen_log_ratio - 0.5).abs().sqrt()", "has the gradient [nan, "),
        ("return pairs.chosen_log_ratio - pairs.chosen_log_ratio.mean()", "must not depend on other pairs"),
        ("return pairs.chosen_log_ratio + options.gamma", "fails for 2 pairs"),
        (
            "return pairs.chosen_log_ratio / (len(pairs.chosen_log_ratio) // len(pairs.chosen_log_ratio))",
            "fails for 0 pairs",
        ),
    ],
)
def test_a_loss_that_returns_something_wrong_is_rejected(module, body, expected):
    assert expected in refused(f"{module(f'def loss(pairs, options): {body}')}:loss")


def test_an_error_in_user_code_is_reported_with_its_line(module):
    name = module("def loss(pairs, options):\n    return pairs.chosen_logratio")
    assert f"AttributeError: 'Pairs' object has no attribute 'chosen_logratio' ({sys.path[0]}" not in refused(
        f"{name}:f"
    )
    message = refused(f"{name}:loss")
    assert "AttributeError: 'Pairs' object has no attribute 'chosen_logratio'" in message
    assert f"{name}.py:2)" in message


@pytest.mark.parametrize(
    ("source", "function", "expected"),
    [
        ("x = 1", "loss", "has no function loss"),
        ("loss = 1", "loss", "has no function loss"),
        ("def loss(pairs): return pairs", "loss", "takes 1 positional argument but 2 were given"),
        ("def loss(pairs, options) return 1", "loss", "cannot be imported: SyntaxError"),
        ("import no_such_package_at_all", "loss", "imports 'no_such_package_at_all', which is not installed"),
        ("raise SystemExit(3)", "loss", "cannot be imported: SystemExit: 3"),
        ("def loss(p, o): return p\nloss.needs_reference = 0", "loss", "needs_reference must be True or False"),
    ],
)
def test_a_loss_that_cannot_be_imported_or_called_is_rejected(module, source, function, expected):
    assert expected in refused(f"{module(source)}:{function}")


@pytest.mark.parametrize("name", ["no_such_module:loss", "no_such_package.module:loss", "os.no_such_module:loss"])
def test_a_missing_module_is_rejected(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    message = refused(name)
    assert "no module" in message
    assert str(tmp_path) in message


def test_a_missing_function_is_rejected_before_any_file_is_opened(module):
    name = f"{module(SIMPO)}:simpo"
    assert read_settings([*OVERRIDES, f"model.dpo.preference_loss={name}"]).model.dpo.preference_loss == name
    with pytest.raises(UserError, match="has no function other"):
        read_settings([*OVERRIDES, f"model.dpo.preference_loss={name.replace(':simpo', ':other')}"])


def test_a_loss_without_a_reference_has_none_to_evaluate(module, monkeypatch):
    def prepared(config):
        raise AssertionError("the run was prepared")

    monkeypatch.setattr(launch, "prepare_run", prepared)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    settings = [*OVERRIDES, f"model.dpo.preference_loss={module(SIMPO)}:simpo"]
    with pytest.raises(UserError, match="needs no reference: there is nothing to evaluate"):
        launch.main(settings, only_reference=True)
    with pytest.raises(AssertionError, match="prepared"):
        launch.main(settings)


def test_a_script_in_another_folder_still_finds_the_loss_in_the_current_one(module, tmp_path):
    name = module(SIMPO)
    code = (
        "from nemo_minordpo.train.model.preference_loss import loss_called; import sys; print(loss_called(sys.argv[1]))"
    )
    script = tmp_path / "elsewhere" / "script.py"
    script.parent.mkdir()
    script.write_text(code)
    done = subprocess.run(
        [sys.executable, str(script), f"{name}:simpo"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert "<function simpo" in done.stdout


def test_the_file_of_a_loss_is_an_input_of_the_run(module, tmp_path):
    name = module(SIMPO)
    assert source_of(section(f"{name}:simpo")) == {"loss": [tmp_path / f"{name}.py"]}


def test_options_come_from_the_section():
    given = DPOSection(ref_policy_kl_penalty=0.2, dpop_lambda=7.0, gt_reward_scale=3.0, sft_loss_weight=0.5)
    options = options_of(given)
    assert (options.beta, options.dpop_lambda, options.gt_reward_scale) == (0.2, 7.0, 3.0)
    assert losses_of(given) == {minordpo: 1.0, sft: 0.5}


@pytest.mark.parametrize(
    ("preference", "sft", "expected"),
    [(False, None, False), (True, None, True), (True, False, False), (False, True, True)],
)
def test_the_average_of_sft_follows_the_preference_losses_unless_it_is_set(preference, sft, expected):
    averages = {"preference_average_log_probs": preference, "sft_average_log_probs": sft}
    options = options_of(DPOSection(ref_policy_kl_penalty=0.2, **averages))
    assert (options.preference_average_log_probs, options.sft_average_log_probs) == (preference, expected)


def test_a_mix_and_a_users_own_loss_with_sft(module):
    assert losses_of(section({"dpo": 0.5, "simpo": 2.0})) == {LOSSES["dpo"]: 0.5, LOSSES["simpo"]: 2.0}
    require_usable_loss(section({"dpo": 0.5, "simpo": 2.0}))
    assert source_of(section({"dpo": 0.5, "simpo": 2.0})) == {}
    name = f"{module(SIMPO)}:simpo"
    both = DPOSection(ref_policy_kl_penalty=0.1, preference_loss=name, sft_loss_weight=0.5)
    assert [*losses_of(both).values()] == [1.0, 0.5]
    assert not any(map(needs_reference, losses_of(both)))


def micro_batch(reference):
    """Two pairs; their chosen responses have 2 and 1 tokens, the rejected ones 2 each; the first shares token 0."""
    credits = torch.tensor([[0, 1], [3, 6], [0, 2], [4, 5]])
    nothing = torch.zeros(0, dtype=torch.int64)
    row = PackedRow(
        tokens=nothing, positions=nothing, segments=nothing, places=nothing, targets=torch.zeros(6), credits=credits
    )
    return MicroBatch(
        pairs=np.arange(2), in_step=np.arange(2), row=row, reward_margin=torch.tensor([1.0, 0.5]),
        reference_log_probs=reference,
    )  # fmt: skip


# their sums: -3 and -7.5 for the chosen responses, -4 and -6.5 for the rejected ones
TOKEN_LOG_PROBS = torch.tensor([-1.0, -2.0, -3.0, -7.5, -2.5, -4.0])


@pytest.mark.parametrize(
    ("reference", "needed", "ratios"),
    [
        (torch.tensor([-3.5, -7.0, -3.0, -7.0], dtype=torch.float64), True, [0.5, -0.5, -1.0, 0.5]),
        (None, True, [0.0, 0.0, 0.0, 0.0]),  # the policy is the reference
        (None, False, [-3.0, -7.5, -4.0, -6.5]),
    ],
)
def test_inputs_of_a_loss_worked_by_hand(reference, needed, ratios):
    log_probs = TOKEN_LOG_PROBS.clone().requires_grad_()
    pairs = pairs_of(log_probs, micro_batch(reference), needs_reference=needed)
    assert [*pairs.chosen_log_ratio.tolist(), *pairs.rejected_log_ratio.tolist()] == ratios
    assert (pairs.chosen_log_probs.tolist(), pairs.rejected_log_probs.tolist()) == ([-3.0, -7.5], [-4.0, -6.5])
    assert (pairs.chosen_num_tokens.tolist(), pairs.rejected_num_tokens.tolist()) == ([2, 1], [2, 2])
    assert pairs.shared_log_probs.tolist() == [-1.0, 0.0]
    assert pairs.reward_margin.tolist() == [1.0, 0.5]
    pairs.log_ratio_margin.sum().backward()
    assert log_probs.grad.tolist() == [0.0, 1.0, -1.0, 1.0, -1.0, -1.0]
