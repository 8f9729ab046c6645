"""The layout changes only rounding: losses, rewards, gradients and validation over ten steps."""

import json

import pytest

from tests.comparison import largest
from tests.parallel.runs_of import LAYOUTS, LORA_LAYOUTS, NUM_STEPS, QWEN3_LAYOUTS

RUNS_OF = ("layouts", "live", "adapters")

COMPARED = (
    "loss", "rewards/chosen", "rewards/rejected", "rewards/margin", "logps/chosen", "logps/shared", "deviation/chosen",
    "grad_norm",
)  # fmt: skip


def worst_relative_difference(one, other, name):
    """Relative to the value, or to 1 nat if that is larger: rewards start at exactly 0."""
    return largest(
        abs(a.values[name] - b.values[name]) / max(abs(a.values[name]), 1.0) for a, b in zip(one, other, strict=True)
    )


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name != "one"])
@pytest.mark.parametrize("split", ["train", "validation"])
def test_layout_changes_only_rounding(runs, layout, split):
    one, other = runs.metrics("one", split), runs.metrics(layout, split)
    assert [line.step for line in other] == [line.step for line in one]
    assert [line.consumed_pairs for line in other] == [line.consumed_pairs for line in one]
    names = [name for name in COMPARED if name in one[0].values]
    assert len(names) >= 7
    differences = {name: worst_relative_difference(one, other, name) for name in names}
    print(layout, split, {name: f"{value:.1e}" for name, value in differences.items()})
    assert largest(differences.values()) < 1e-5, differences


def test_the_trajectory_goes_somewhere(runs):
    """The control: the compared runs learn; they are not ten equal steps."""
    lines = runs.metrics("one")
    assert len(lines) == NUM_STEPS
    assert lines[0].values["loss"] == pytest.approx(0.693147, abs=1e-6)
    assert lines[0].values["rewards/margin"] == 0.0
    assert lines[-1].values["loss"] < 0.65
    assert lines[-1].values["rewards/chosen"] > 1.0


@pytest.mark.parametrize("layout", ["tp2", "pp2"])
def test_tied_embeddings(runs, layout):
    """The gradient of a tied embedding comes from both ends of the pipeline."""
    one, other = runs.metrics("tied_one"), runs.metrics(f"tied_{layout}")
    assert largest(worst_relative_difference(one, other, name) for name in COMPARED) < 1e-5


@pytest.mark.parametrize("layout", [name for name in QWEN3_LAYOUTS if name != "one"])
def test_norms_of_queries_and_keys(runs, layout):
    """Each tensor-parallel rank only has the gradient from its own heads, but the weights are shared by all heads."""
    one, other = runs.metrics("qwen3_one"), runs.metrics(f"qwen3_{layout}")
    assert len(one) == len(other) == NUM_STEPS
    assert one[-1].values["rewards/chosen"] > 1.0
    assert largest(worst_relative_difference(one, other, name) for name in COMPARED) < 1e-5


def test_adapters_beside_norms_of_queries_and_keys(runs):
    """NeMo's attention with adapters skips the norms. Stopped after step 4 at TP=2, the run resumes at TP=1."""
    whole, moved = runs.metrics("qwen3_lora"), runs.metrics("qwen3_lora_one")
    expected = runs.metrics("qwen3_one")[0].values["logps/chosen"]
    assert whole[0].values["logps/chosen"] == pytest.approx(expected, rel=1e-6)
    assert whole[-1].values["rewards/margin"] > 0.1
    assert [line.step for line in whole] == [line.step for line in moved]
    assert largest(worst_relative_difference(whole, moved, name) for name in COMPARED) < 1e-5


def test_a_partial_batch_is_a_mean_over_its_own_pairs(runs):
    """22 pairs in batches of 8: the third has six, as the metrics show."""
    consumed = [line.consumed_pairs for line in runs.metrics("one")]
    assert consumed == [8, 16, 22, 30, 38, 44, 52, 60, 66, 74]


def test_a_set_smaller_than_the_global_batch(runs):
    lines = runs.metrics("small")
    assert [line.consumed_pairs for line in lines] == [22, 44]
    assert lines[1].values["loss"] < lines[0].values["loss"]


def test_adapters_resume_at_any_layout(runs):
    """LoRA, stopped after step 4 at TP=2 x PP=2, resumes from step 3 as if it had never stopped."""
    expected = runs.metrics("lora")
    assert expected[0].values["rewards/margin"] == 0.0
    assert expected[-1].values["rewards/margin"] > 0.1
    for layout in LORA_LAYOUTS:
        lines = runs.metrics(f"lora_{layout}")
        assert [line.step for line in lines] == [line.step for line in expected]
        assert largest(worst_relative_difference(expected, lines, name) for name in COMPARED) < 1e-5, layout


def test_the_reference_of_adapters_is_the_model_they_start_on(runs):
    """New adapters change nothing: the first step's log-probabilities are those of a run without them."""
    expected = runs.metrics("tp2pp2")[0].values["logps/chosen"]
    assert runs.metrics("lora")[0].values["logps/chosen"] == pytest.approx(expected, rel=1e-7)


@pytest.mark.parametrize(("layout", "live"), [("one", "live"), ("pp2", "live_pp2")])
def test_the_cached_reference_is_the_live_one(runs, layout, live):
    for split in ("train", "validation"):
        kept, swapped = runs.metrics(layout, split), runs.metrics(live, split)
        assert len(kept) == len(swapped) >= 1
        shared = [name for name in COMPARED if name in kept[0].values]
        assert largest(worst_relative_difference(kept, swapped, name) for name in shared) < 1e-5


def test_runs_share_one_reference(runs):
    """Whatever their loss, layout, optimizer or adapters: one entry per model, split and set of overrides."""
    entries = [json.loads(path.read_text()) for path in (runs.path / "reference_cache").glob("*.json")]
    keys = [{name: value for name, value in entry["key"].items() if name != "pairs"} for entry in entries]
    configurations = {json.dumps(key, sort_keys=True) for key in keys}
    assert len(entries) == 2 * len(configurations)  # train and validation
    folders = [path.parent for path in runs.path.glob("*/config.yaml") if "cached" in path.read_text()]
    # three models, one of them with dropout, with adapters that runs start from, and in bfloat16
    assert 3 <= len(configurations) <= 9 < 30 < len(folders)
