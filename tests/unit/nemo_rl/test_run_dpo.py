"""The run script, with stand-ins for everything of NeMo-RL that needs Ray and GPUs."""

import importlib
import sys
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
from nemo_rl.algorithms.loss import DPOLossFn
from omegaconf import OmegaConf
from pydantic import BaseModel

from nemo_minordpo.nemo_rl.loss import MinorDPOLossFn
from nemo_minordpo.nemo_rl.reference import CachedReference
from tests.unit.nemo_rl import contract


class MasterConfig(BaseModel):
    dpo: contract.DPOConfig
    policy: dict
    data: dict
    logger: dict


@pytest.fixture
def script(tmp_path, monkeypatch):
    """The module, the arguments that it calls NeMo-RL with, and the path of a configuration."""
    called = {}
    checkpointer = nullcontext()

    def setup(config, tokenizer, *data_sets):
        called["setup"] = (tokenizer, *data_sets)
        own = DPOLossFn(config.dpo, use_fused_linear_logprobs=True)
        return (
            SimpleNamespace(name="policy"),
            "cluster",
            "pairs",
            {"default": "pairs"},
            own,
            "logger",
            checkpointer,
            "state",
            config,
        )

    made = {
        "nemo_rl.algorithms.dpo": {
            "MasterConfig": MasterConfig, "setup": setup, "dpo_train": lambda *given: called.update(dpo_train=given),
        },
        "nemo_rl.algorithms.utils": {"get_tokenizer": lambda settings: f"tokenizer of {settings['name']}"},
        "nemo_rl.data.utils": {"setup_preference_data": lambda tokenizer, data: (data["train"], data["validation"])},
        "nemo_rl.distributed.virtual_cluster": {"init_ray": lambda: called.update(init_ray=True)},
        "nemo_rl.utils.config": {
            "load_config": OmegaConf.load,
            "parse_hydra_overrides": lambda config, overrides: OmegaConf.merge(
                config, OmegaConf.from_dotlist(overrides)
            ),
        },
        "nemo_rl.utils.logger": {"get_next_experiment_dir": lambda folder: f"{folder}/exp_001"},
    }  # fmt: skip
    for name in ("nemo_rl.data", "nemo_rl.distributed", "nemo_rl.utils", *made):
        monkeypatch.setitem(sys.modules, name, contract.module(name, **made.get(name, {})))
    monkeypatch.delitem(sys.modules, "nemo_minordpo.nemo_rl.run_dpo", raising=False)
    path = tmp_path / "dpo.yaml"
    path.write_text(
        "dpo: {reference_policy_kl_penalty: 0.1}\n"
        "policy: {model_name: org/model, precision: bfloat16, tokenizer: {name: org/model}}\n"
        "data: {train: train.jsonl, validation: validation.jsonl}\n"
        "logger: {log_dir: logs}\n"
    )
    return importlib.import_module("nemo_minordpo.nemo_rl.run_dpo"), called, path


def test_training_gets_our_loss(script):
    module, called, path = script
    module.run(path, ["dpo.preference_loss=dpop"])
    policy, pairs, validation, tokenizer, loss_fn, config, logger, _, state = called["dpo_train"]
    assert isinstance(loss_fn, MinorDPOLossFn)
    assert loss_fn.use_fused_linear_logprobs
    assert (policy.name, pairs, validation, logger, state) == (
        "policy", "pairs", {"default": "pairs"}, "logger", "state",
    )  # fmt: skip
    assert not isinstance(policy, CachedReference)
    assert called["setup"] == (tokenizer, "train.jsonl", "validation.jsonl")
    assert config.logger["log_dir"] == "logs/exp_001"


def test_a_folder_for_the_reference_makes_it_cached(script, tmp_path):
    module, called, path = script
    module.run(path, [f"dpo.reference_cache={tmp_path / 'cache'}"])
    policy = called["dpo_train"][0]
    assert isinstance(policy, CachedReference)
    assert policy.name == "policy"


def test_a_wrong_setting_ends_before_anything_starts(script, monkeypatch):
    module, called, path = script
    monkeypatch.setattr(sys, "argv", ["run_dpo", "--config", str(path), "dpo.dpop_lamda=3"])
    with pytest.raises(SystemExit, match=r"error: dpo.dpop_lamda is not a setting.*dpop_lambda"):
        module.main()
    assert not called
