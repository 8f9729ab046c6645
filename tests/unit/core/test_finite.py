"""Exactly the tensors with non-finite values are found, by name."""

import math

import pytest
import torch

from nemo_minordpo.core.finite import first_of, require_finite_tensors, tensors_not_finite


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", [0, 7, 11])
def test_one_value_is_found_at_any_place(dtype, value, place):
    tensor = torch.linspace(-1, 1, 12).to(dtype)
    tensor[place] = value
    largest = torch.full((3,), torch.finfo(dtype).max, dtype=dtype)
    tensors = {"sound": largest, "broken": tensor.reshape(3, 4), "scalar": tensor[place], "negative": -largest}
    assert tensors_not_finite(tensors.items()) == ["broken", "scalar"]


def test_tensors_without_numbers_are_skipped():
    tensors = [
        ("ids", torch.tensor([1, 2])),
        ("empty", torch.empty(0, 3)),
        ("weight", torch.ones(2, requires_grad=True)),
    ]
    assert tensors_not_finite(tensors) == []
    assert tensors_not_finite([]) == []


def test_a_model_is_refused_with_its_first_tensors():
    tensors = [(name, torch.tensor([math.nan])) for name in "abcde"]
    require_finite_tensors([("a", torch.zeros(1))], where="here")
    with pytest.raises(ValueError, match=r"^here: not finite: a, b, c and 2 more$"):
        require_finite_tensors(tensors, where="here")


def test_the_first_items():
    assert [first_of(list("abcd"[:count])) for count in (1, 3, 4)] == ["a", "a, b, c", "a, b, c and 1 more"]
