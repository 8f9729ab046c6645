"""Values that stop a run because they are not finite, the messages, and values that do not."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.distributed as dist

from nemo_minordpo.config import DataSection, compose, load
from nemo_minordpo.core.metrics import PAIR_METRICS, ROWS, summary
from nemo_minordpo.pairs.tokens import tokenize_files
from nemo_minordpo.train.require_finite import (
    NotFiniteError,
    numbers_of,
    places_in,
    require_finite,
    require_finite_log_probs,
    require_finite_norm,
    require_finite_pairs,
    require_finite_weights,
)

from .conftest import pair

NOT_FINITE = [math.nan, math.inf, -math.inf]


def check(table):
    require_finite_pairs(table, summary(table), when="step 3", places=numbers_of)


@pytest.mark.parametrize("value", NOT_FINITE)
@pytest.mark.parametrize("metric", ["loss", "rewards/chosen", "rewards/rejected", "logps/chosen", "logps/rejected"])
def test_one_pair_stops_a_step(metric, value):
    table = torch.full((len(PAIR_METRICS), 5), 1e30, dtype=torch.float64)
    check(table)
    table[ROWS[metric], 3] = value
    with pytest.raises(NotFiniteError, match=rf"^step 3: {metric} not finite for 1 of 5 pairs: pair 3$"):
        check(table)


def test_infinities_that_cancel_in_a_sum_are_noticed():
    table = torch.zeros(len(PAIR_METRICS), 6, dtype=torch.float64)
    table[0, 1], table[0, 4], table[5, [2, 5]] = math.inf, -math.inf, math.nan
    expected = "step 3: loss, logps/chosen not finite for 4 of 6 pairs: pair 1, pair 2, pair 4 and 1 more"
    with pytest.raises(NotFiniteError) as error:
        check(table)
    assert str(error.value) == expected


def test_a_finite_step_does_not_read_the_table():
    means = dict.fromkeys(PAIR_METRICS, 0.0)
    require_finite_pairs(None, means, when="step 1", places=numbers_of)


@pytest.mark.parametrize("value", NOT_FINITE)
def test_a_gradient_norm_stops_a_step(value):
    require_finite({"grad_norm": 1e38}, when="step 2")
    require_finite({}, when="step 2")
    with pytest.raises(NotFiniteError, match=f"^step 2: grad_norm is {value}$"):
        require_finite({"other": 0.0, "grad_norm": value}, when="step 2")


@pytest.mark.parametrize("value", NOT_FINITE)
def test_log_probabilities_name_their_pairs(value):
    values = np.full((4, 2), -1e300)
    require_finite_log_probs(values, what="reference of train pairs", places=numbers_of)
    values[[1, 3], [0, 1]] = value
    expected = "^reference of train pairs: log-probabilities not finite for 2 of 4 pairs: pair 1, pair 3$"
    with pytest.raises(NotFiniteError, match=expected):
        require_finite_log_probs(values, what="reference of train pairs", places=numbers_of)


def model_of(**weights):
    module = torch.nn.Module()
    for name, values in weights.items():
        module.register_parameter(name, torch.nn.Parameter(torch.tensor(values)))
    return SimpleNamespace(get_model_module_list=lambda: [module])


def test_weights_of_any_rank_stop_every_rank(monkeypatch):
    of_another_rank = []
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(
        dist, "all_gather_object", lambda parts, own: parts.__setitem__(slice(2), [own, of_another_rank])
    )
    sound = model_of(a=[1.0, 3e38], b=[0.0])
    require_finite_weights(sound, when="after step 4")
    with pytest.raises(NotFiniteError, match=r"^after step 4: weights not finite: b$"):
        require_finite_weights(model_of(a=[1.0], b=[math.nan]), when="after step 4")
    of_another_rank.append("c")
    with pytest.raises(NotFiniteError, match=r"^after step 4: weights not finite: c$"):
        require_finite_weights(sound, when="after step 4")


@pytest.mark.parametrize("value", NOT_FINITE)
def test_a_gradient_norm_names_the_first_and_the_last_weight(monkeypatch, value):
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(dist, "all_gather_object", lambda parts, own: parts.__setitem__(slice(2), [own, ["e"]]))
    model = model_of(a=[1.0], b=[1.0], c=[1.0], d=[1.0])
    a, b, c, _ = model.get_model_module_list()[0].parameters()
    a.grad = torch.tensor([1.0])
    b.grad = torch.tensor([value])
    c.main_grad = torch.tensor([value])  # Megatron's; d has no gradient
    require_finite_norm(2.0, model, when="step 3")
    expected = f"^step 3: grad_norm is {value}; weights whose gradient is not finite: 3, b to e$"
    with pytest.raises(NotFiniteError, match=expected):
        require_finite_norm(value, model, when="step 3")
    b.grad, c.main_grad = torch.tensor([1.0]), torch.tensor([1.0])
    monkeypatch.setattr(dist, "all_gather_object", lambda parts, own: parts.__setitem__(slice(2), [own, []]))
    with pytest.raises(NotFiniteError, match=r"not finite: 0, none by itself$"):
        require_finite_norm(value, model, when="step 3")


def test_frozen_weights_are_not_checked(monkeypatch):
    monkeypatch.setattr(dist, "get_world_size", lambda: 1)
    monkeypatch.setattr(dist, "all_gather_object", lambda parts, own: parts.__setitem__(0, own))
    model = model_of(a=[math.inf], b=[1.0])
    model.get_model_module_list()[0].a.requires_grad = False
    require_finite_weights(model, when="after step 4")


@pytest.fixture
def config(tmp_path):
    overrides = [
        "pretrained_checkpoint.restore_from_path=base.nemo",
        f"model.data.data_prefix.train=[{tmp_path}/a.jsonl,{tmp_path}/b.jsonl]",
        f"exp_manager.explicit_log_dir={tmp_path}/run",
        "model.dpo.ref_policy_kl_penalty=0.1",
    ]
    return load(compose(overrides))


def test_pairs_are_named_by_file_and_line(write, tmp_path, tokenizer, config):
    files = [
        write("{broken", pair(), "", pair(rejected="5"), name="a.jsonl"),
        write(pair(rejected="2 + 2 = 4"), pair(chosen="four"), name="b.jsonl"),
    ]
    settings = DataSection(invalid_pairs="drop")
    tokenize_files(files, tmp_path / "run/data/train", tokenizer=tokenizer, data=settings, split="train")
    places = places_in(config, "train")
    assert places([2, 0, 1]) == [f"{files[1]}:2", f"{files[0]}:2", f"{files[0]}:4"]
    files[1].write_text("")
    assert places([2, 0]) == ["pair 2", "pair 0"]
    files[1].unlink()
    assert places([2]) == ["pair 2"]
