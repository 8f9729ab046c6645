from pathlib import Path

import pytest
from nemo_rl.algorithms.loss import DPOLossConfig
from omegaconf import OmegaConf

from nemo_minordpo.errors import UserError
from nemo_minordpo.nemo_rl.settings import objective_of


def objective(**settings):
    return objective_of(DPOLossConfig(**settings))


def test_settings_of_both_make_an_objective():
    section = objective(
        reference_policy_kl_penalty=0.2, preference_loss={"dpop": 1.0, "hinge": 0.5}, dpop_lambda=5, sft_loss_weight=0.1
    )
    assert (section.ref_policy_kl_penalty, section.dpop_lambda, section.sft_loss_weight) == (0.2, 5.0, 0.1)
    assert section.preference_loss == {"dpop": 1.0, "hinge": 0.5}


def test_the_default_loss_is_minordpo():
    assert objective().preference_loss == "minordpo"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dpop_lamda": 5}, "dpo.dpop_lamda is not a setting of NeMo-RL or nemo-minordpo; did you mean 'dpop_lambda'?"),
        ({"max_steps": 5}, "dpo.max_steps is not a setting"),
        ({"preference_loss": "minor_dpo"}, "dpo.preference_loss='minor_dpo' is unknown.*did you mean 'minordpo'"),
        ({"preference_loss": "my.module:loss"}, "your own losses are not supported in NeMo-RL"),
        ({"preference_loss": "rpo_sq"}, "ground-truth rewards"),
        ({"preference_loss": {"dpo": 1.0, "rpo_bwd_kl": 1.0}}, "rpo_bwd_kl reads ground-truth rewards"),
        ({"reference_policy_kl_penalty": 0.0}, "dpo.reference_policy_kl_penalty=0.0.* > 0"),
        ({"dpop_lambda": -1.0}, "dpo.dpop_lambda=-1.0.* >= 0"),
        ({"dpop_lambda": "many"}, "dpo.dpop_lambda=many"),
        ({"label_smoothing": 0.5}, r"dpo.label_smoothing=0.5.*\[0, 0.5\)"),
        ({"preference_loss_weight": 0.0}, "there is no loss to train"),
        ({"minordpo_floor": 1.0, "preference_average_log_probs": True}, "nats of a whole response"),
        ({"reference_cache": ""}, "a string expected"),
    ],
)
def test_what_is_refused(settings, message):
    with pytest.raises(UserError, match=message) as raised:
        objective(**settings)
    assert "model.dpo" not in str(raised.value)


def test_every_mistake_is_named():
    with pytest.raises(UserError) as raised:
        objective(dpop_lamda=5, dpop_lambda="many", labelsmoothing=0.1)
    assert len(str(raised.value).splitlines()) == 3


def test_the_example_is_right():
    example = OmegaConf.to_container(OmegaConf.load(Path(__file__).parents[3] / "examples" / "nemo_rl.yaml"))
    section = objective_of(DPOLossConfig(**example["dpo"]))
    assert section.preference_loss == "minordpo"
    assert section.reference_cache
