"""A stand-in for NeMo-RL's policy counts how often the reference is evaluated."""

import pytest
import torch

from nemo_minordpo.errors import UserError
from nemo_minordpo.nemo_rl.reference import CachedReference

CONFIG = {"model_name": "org/model", "precision": "bfloat16", "dtensor_cfg": {"enabled": True}}
LENGTHS = [3, 6, 5]


class Policy:
    """Log-probabilities that depend on the tokens; NaN in padding."""

    name = "policy"

    def __init__(self):
        self.evaluated = 0

    def get_reference_policy_logprobs(self, data, micro_batch_size=None):
        assert micro_batch_size == 2
        self.evaluated += 1
        values = -data["input_ids"].float() / 7
        for row, length in zip(values, data["input_lengths"], strict=True):
            row[int(length) :] = torch.nan
        return {"reference_logprobs": values}


def batch(*, start=0, pad_to=6, lengths=LENGTHS):
    ids = torch.zeros(len(lengths), pad_to, dtype=torch.int64)
    for index, length in enumerate(lengths):
        ids[index, :length] = torch.arange(length) + 10 * (start + index)
    return {"input_ids": ids, "input_lengths": torch.tensor(lengths)}


def expected(data):
    places = torch.arange(data["input_ids"].shape[1])
    return torch.where(places < data["input_lengths"][:, None], -data["input_ids"].float() / 7, 0.0)


@pytest.fixture
def opened(tmp_path):
    def open_cache(**changes):
        policy = Policy()
        return policy, CachedReference(policy, tmp_path / "cache", config={**CONFIG, **changes})

    return open_cache


def test_a_batch_is_evaluated_once(opened):
    policy, cached = opened()
    for _ in range(3):
        found = cached.get_reference_policy_logprobs(batch(), micro_batch_size=2)["reference_logprobs"]
        assert torch.equal(found, expected(batch()))
    assert policy.evaluated == 1
    assert cached.name == "policy"


def test_another_run_and_other_padding_read_the_same(opened):
    opened()[1].get_reference_policy_logprobs(batch(), micro_batch_size=2)
    policy, cached = opened()
    wider = batch(pad_to=9)
    assert torch.equal(
        cached.get_reference_policy_logprobs(wider, micro_batch_size=2)["reference_logprobs"], expected(wider)
    )
    assert policy.evaluated == 0


def test_one_new_sequence_evaluates_its_batch(opened):
    policy, cached = opened()
    cached.get_reference_policy_logprobs(batch(), micro_batch_size=2)
    overlapping = batch(start=1)
    found = cached.get_reference_policy_logprobs(overlapping, micro_batch_size=2)["reference_logprobs"]
    assert torch.equal(found, expected(overlapping))
    assert policy.evaluated == 2


@pytest.mark.parametrize(
    "changes",
    [
        {"model_name": "org/other"},
        {"precision": "float32"},
        {"dtensor_cfg": {"enabled": False}, "megatron_cfg": {"enabled": True}},
        {"pretrained_checkpoint": {"path": "x"}},
    ],
)
def test_another_reference_has_another_file(opened, tmp_path, changes):
    opened()[1].get_reference_policy_logprobs(batch(), micro_batch_size=2)
    policy, cached = opened(**changes)
    cached.get_reference_policy_logprobs(batch(), micro_batch_size=2)
    assert policy.evaluated == 1
    assert len([*(tmp_path / "cache").glob("*.sqlite")]) == 2


def test_a_folder_whose_weights_changed_is_another_reference(opened, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"1")
    opened(model_name=str(folder))[1].get_reference_policy_logprobs(batch(), micro_batch_size=2)
    (folder / "model.safetensors").write_bytes(b"12")
    policy, cached = opened(model_name=str(folder))
    cached.get_reference_policy_logprobs(batch(), micro_batch_size=2)
    assert policy.evaluated == 1


def test_numbers_that_are_not_finite_are_not_stored(opened):
    policy, cached = opened()
    policy.get_reference_policy_logprobs = lambda data, **options: {
        "reference_logprobs": torch.full(data["input_ids"].shape, torch.nan)
    }
    with pytest.raises(FloatingPointError, match="reference"):
        cached.get_reference_policy_logprobs(batch(), micro_batch_size=2)
    policy, cached = opened()
    cached.get_reference_policy_logprobs(batch(), micro_batch_size=2)
    assert policy.evaluated == 1


def test_a_damaged_file_is_named(opened, tmp_path):
    opened()[1].get_reference_policy_logprobs(batch(), micro_batch_size=2)
    (path,) = (tmp_path / "cache").glob("*.sqlite")
    path.write_bytes(b"not a database" * 100)
    with pytest.raises(UserError, match=rf"{path.name}: damaged.*delete it"):
        opened()
