"""Packed pairs with shared tokens = separate, unpadded sequences: values, metrics, gradients."""

import json

import pytest

RUNS_OF = ("separate",)

LAYOUTS = ("one", "one_recompute", "one_tied", "tp2", "pp2", "tp2pp2")


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("dtype", "bound"), [("torch.float32", 1e-5), ("torch.float64", 1e-10)])
def test_packed_equals_separate(runs, layout, dtype, bound):
    errors = json.loads((runs.path / f"separate_{layout}/separate.json").read_text())[dtype]
    print(layout, dtype, {name: f"{value:.1e}" for name, value in errors.items()})
    assert errors["examples"] >= 10
    assert errors["control"] > 1.0  # the two sides of a pair are not mixed up
    for name in ("loss", "metrics", "gradients", "alone"):
        assert 0 <= errors[name] < bound, name
