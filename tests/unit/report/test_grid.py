"""Runs grouped into settings: names, seeds, unfair comparisons; and curves over steps and seeds."""

import json
import math

import pytest

from nemo_minordpo.records import StepMetrics
from nemo_minordpo.report.axes import arrange
from nemo_minordpo.report.curves import MOST_POINTS, Curves
from nemo_minordpo.report.runs import read_run
from tests.unit.report.sweep import metrics_line, write_config, write_score


@pytest.fixture
def make(tmp_path):
    def folder(name, *, values=(), steps=None, right=None, questions=100, **settings):
        run = write_config(tmp_path / name, **{"loss": "dpo", **settings})
        numbers = range(1, len(values) + 1) if steps is None else steps
        lines = [metrics_line(step, {"loss": value}) for step, value in zip(numbers, values, strict=True)]
        (run / "metrics.jsonl").write_text("".join(lines))
        if right is not None:
            write_score(run / "evaluation", right, questions=questions)
        return read_run(run)

    return folder


def names(grid):
    return [run.name for run in grid.runs]


def test_runs_that_share_a_loss_get_distinct_names_and_are_sorted(make):
    runs = [
        make("a", loss="minordpo"), make("b", beta=0.2, rate=1e-5), make("c", beta=0.02, rate=1e-5, seed=2),
        make("d", beta=0.02, rate=1e-5, seed=1), make("e", beta=0.2, rate=1e-6),
    ]  # fmt: skip
    grid = arrange(runs, None)
    assert names(grid) == [
        "minordpo", "dpo, beta 0.2, lr 1e-06", "dpo, beta 0.02, lr 1e-05, seed 1", "dpo, beta 0.02, lr 1e-05, seed 2",
        "dpo, beta 0.2, lr 1e-05",
    ]  # fmt: skip
    assert [len(setting.runs) for setting in grid.settings] == [1, 1, 2, 1]
    assert (grid.betas, grid.learning_rates) == ([0.02, 0.1, 0.2], [1e-6, 1e-5, 2e-5])
    assert grid.notes == []


def test_the_same_seed_twice_is_a_note(make):
    grid = arrange([make("a"), make("b")], None)
    assert [name.startswith("dpo (") for name in names(grid)] == [True, True]
    assert "the same settings and the same seed" in grid.notes[0]


def test_other_differences_within_a_loss_are_in_its_name_and_not_averaged(make):
    grid = arrange([make("a", global_batch_size=128), make("b", global_batch_size=256, seed=2)], None)
    assert grid.losses == ["dpo (global_batch_size 128)", "dpo (global_batch_size 256)"]
    assert len(grid.settings) == 2


def test_settings_without_effect_on_training_make_no_difference(make):
    first, second = make("a", seed=1), make("b", seed=2)
    second.settings |= {"trainer.devices": 8, "model.tensor_model_parallel_size": 4}
    assert arrange([first, second], None).losses == ["dpo"]


def test_losses_that_differ_in_more_than_the_loss_are_a_note(make):
    grid = arrange([make("a", loss="dpo", global_batch_size=64), make("b", loss="ipo")], None)
    assert grid.notes == ["the losses also differ in model.global_batch_size: dpo 64, ipo 128"]


def test_a_setting_counts_only_where_the_loss_reads_it(make):
    """Control: dpop reads its lambda, and a user's own loss may."""
    for loss, labels in (
        ("dpo", ["dpo"]),
        ("dpop", ["dpop (dpop_lambda 5)", "dpop (dpop_lambda 50)"]),
        ("mine:loss", ["mine:loss (dpop_lambda 5)", "mine:loss (dpop_lambda 50)"]),
    ):
        runs = [make(f"{loss}{seed}", loss=loss, seed=seed) for seed in (1, 2)]
        for run, value in zip(runs, (5, 50), strict=True):
            run.settings["model.dpo.dpop_lambda"] = value
        assert arrange(runs, None).losses == labels
        pair = [make("dpo of a pair", loss="dpo"), runs[1]]
        pair[0].settings["model.dpo.dpop_lambda"] = 5
        assert [note for note in arrange(pair, None).notes if "dpop_lambda" in note] == []


def test_an_option_that_makes_another_loss_is_in_its_name(make):
    """Also if all runs have it: length-normalised DPO is not the paper's DPO."""
    runs = [make(name, seed=seed) for seed, name in enumerate("ab", start=1)]
    for run in runs:
        run.settings |= {"model.dpo.preference_average_log_probs": True, "model.dpo.minordpo_floor": -1.0}
    assert arrange(runs, None).losses == ["dpo (preference_average_log_probs True)"]  # dpo does not read the floor
    del runs[0].settings["model.dpo.preference_average_log_probs"]  # a run of a version without the setting
    assert arrange(runs, None).losses == [
        "dpo (preference_average_log_probs False)", "dpo (preference_average_log_probs True)",
    ]  # fmt: skip


def test_a_mix_is_named_by_its_losses_and_weights(make):
    run = make("a", loss={"minordpo": 1.0, "sft": 0.1})
    assert (run.loss, run.losses) == ("minordpo + 0.1 sft", ("minordpo", "sft"))
    assert arrange([run], None).losses == ["minordpo + 0.1 sft"]


@pytest.mark.parametrize(
    "key",
    ["pretrained_checkpoint.restore_from_path", "model.data.data_prefix.train", "model.peft.restore_from_path"],
)
def test_base_model_and_pairs_distinguish_runs(make, key):
    runs = [make(name, seed=seed) for seed, name in enumerate("ab")]
    for run, path in zip(runs, ("one", "other"), strict=True):
        run.settings[key] = path
    last = key.rpartition(".")[2]
    assert arrange(runs, None).losses == [f"dpo ({last} one)", f"dpo ({last} other)"]


def test_scores_of_different_questions_are_a_note(make):
    runs = [make("a", right=50), make("b", loss="ipo", right=30, questions=60)]
    assert arrange(runs, None).notes == [
        "the scores are not on the same questions: 100 of test.jsonl: dpo; 60 of test.jsonl: ipo"
    ]


def test_greedy_and_drawn_answers_are_a_note(make):
    runs = [make("a", right=50), make("b", loss="ipo", right=30)]
    path = runs[1].folder / "evaluation/score.json"
    drawn = {"num_samples": 4, "temperature": 0.7, "top_p": 1.0, "seed": 0}
    for rule in ("strict", "flexible"):
        drawn |= {f"{rule}_majority_accuracy": 0.5, f"{rule}_majority_interval_95": [0.4, 0.6]}
        drawn |= {f"{rule}_pass_at": {"4": 0.9}, f"{rule}_pass_at_interval_95": {"4": [0.8, 0.95]}}
    path.write_text(json.dumps(json.loads(path.read_text()) | drawn))
    runs[1] = read_run(runs[1].folder)
    assert runs[1].score.strict_pass_at == {"4": 0.9}
    assert arrange(runs, None).notes == [
        "the answers were not chosen in the same way: greedy: dpo; 4 drawn at temperature 0.7, top-p 1: ipo"
    ]


def test_few_steps_are_drawn_as_they_are(make):
    run = make("a", values=[1.0, math.nan, 3.0])
    curves = Curves(arrange([run], None))
    assert (curves.steps.width, curves.steps.centres) == (1, [1.0, 2.0, 3.0])
    mean = curves.run(run, "loss").mean
    assert (mean[0], mean[2]) == (1.0, 3.0)
    assert math.isnan(mean[1])


def test_values_from_before_the_first_step_belong_to_the_first_point(make):
    run = make("a", values=[1.0, 2.0, 3.0])
    run.lines["watch"] = [
        StepMetrics(split="watch", step=step, epoch=0, consumed_pairs=0, values={"kl_reference": float(step)})
        for step in (0, 2)
    ]
    mean = Curves(arrange([run], None)).run(run, "watch/kl_reference").mean
    assert mean[:2] == [0.0, 2.0]
    assert math.isnan(mean[2])
    run.lines = {"watch": run.lines["watch"][:1]}  # the first step has not ended
    assert Curves(arrange([run], None)).run(run, "watch/kl_reference").mean == [0.0]


def test_many_steps_are_averaged_over_equal_intervals_shared_by_all_runs(make):
    steps = 3 * MOST_POINTS
    long, short = make("a", values=[float(n) for n in range(steps)], seed=1), make("b", values=[5.0] * 4, seed=2)
    curves = Curves(arrange([long, short], None))
    assert (curves.steps.width, curves.steps.count) == (3, MOST_POINTS)
    assert (curves.steps.centres[:2], curves.steps.first(1), curves.steps.last(1)) == ([2.0, 5.0], 4, 6)
    assert curves.run(long, "loss").mean[:3] == [1.0, 4.0, 7.0]
    assert curves.run(short, "loss").mean[:2] == [5.0, 5.0]
    assert math.isnan(curves.run(short, "loss").mean[2])


def test_seeds_are_averaged_as_far_as_each_got_with_lowest_and_highest(make):
    runs = [make("a", values=[1.0, 2.0], seed=1), make("b", values=[3.0], seed=2)]
    grid = arrange(runs, None)
    curve = Curves(grid).setting(grid.settings[0], "loss")
    assert (curve.mean, curve.low, curve.high) == ([2.0, 2.0], [1.0, 2.0], [3.0, 2.0])
