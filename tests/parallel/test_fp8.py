"""FP8 with delayed scaling, as emulated by delayed_scaling.py: which scales are used where, and their noise."""

import pytest

from tests.comparison import without_measured

RUNS_OF = ("whole", "fp8")


def trained(runs, name):
    return [without_measured(line) for line in runs.metrics(f"fp8_{name}")]


def values(runs, name, metric):
    return [line.values[metric] for line in runs.metrics(f"fp8_{name}")]


@pytest.mark.parametrize(("looks", "whole"), [("looks", "whole"), ("live_looks", "live")])
def test_validation_and_watch_change_no_bit_of_the_training(runs, looks, whole):
    assert trained(runs, looks) == trained(runs, whole)


def test_they_would_if_they_left_their_largest_values_behind(runs):
    """The control: the comparison above can fail."""
    assert trained(runs, "without_scales_kept") != trained(runs, "whole")


def test_resumed_equals_uninterrupted_to_the_bit(runs):
    """The checkpoint has the scales and their history: computed anew, they would differ from those of step 3."""
    assert trained(runs, "stopped") == trained(runs, "looks")


def test_rounding_is_there(runs):
    """The control: FP8's log-probabilities differ from those of float32, which depend on no scales."""
    exact, rounded = runs.metrics("moved_whole")[0], runs.metrics("fp8_whole")[0]
    assert 1e-3 < abs(exact.values["logps/chosen"] - rounded.values["logps/chosen"]) < 1.0


@pytest.mark.parametrize("name", ["whole", "live"])
def test_the_first_log_ratios_are_zero(runs, name):
    assert values(runs, name, "rewards/chosen")[0] == values(runs, name, "rewards/rejected")[0] == 0.0
    assert values(runs, name, "minordpo/rejected_undecided")[0] == 1.0


def test_noise_of_the_reference(runs):
    """As large as the effect of moving scales on later log-ratios; zero for the live reference."""
    noises = values(runs, "whole", "reference_noise")
    assert noises == [noises[0]] * 8
    drift = [
        abs(kept - live)
        for name in ("rewards/chosen", "rewards/rejected")
        for kept, live in zip(values(runs, "whole", name), values(runs, "live", name), strict=True)
    ]
    assert 0 < max(drift) < noises[0] < 10 * max(drift)
    assert values(runs, "live", "reference_noise") == [0.0] * 8


def test_noise_is_larger_where_scales_start_at_one(runs):
    assert values(runs, "without_find_scales", "reference_noise")[0] > 1.5 * values(runs, "whole", "reference_noise")[0]
