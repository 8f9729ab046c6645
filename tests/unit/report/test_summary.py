"""Each sentence and each claim, on data that support it and on data that do not."""

import math
from pathlib import Path

import pytest

from nemo_minordpo.core.intervals import wilson_interval
from nemo_minordpo.records import RunEvent, Score, StepMetrics
from nemo_minordpo.report.axes import arrange
from nemo_minordpo.report.claims import claims
from nemo_minordpo.report.document import document_of
from nemo_minordpo.report.run_state import State
from nemo_minordpo.report.runs import Run
from nemo_minordpo.report.scores import is_degenerate, over_seeds, strict
from nemo_minordpo.report.summary import summary

DONE = RunEvent(time="2024", attempt=1, job="j", event="complete", step=1)


def score(right, *, questions=100, degenerate=0.0):
    interval = wilson_interval(right, questions)
    return Score(
        model="m", questions="q", num_questions=questions,
        strict_accuracy=right / questions, strict_interval_95=interval,
        flexible_accuracy=right / questions, flexible_interval_95=interval,
        degenerate_rate=degenerate, no_answer_rate=0.0, unfinished_rate=0.0, mean_tokens=9.0,
    )  # fmt: skip


def run(
    loss, right=None, *, chosen=1.0, rejected=0.0, beta=0.1, rate=1e-6, seed=1, degenerate=0.0, done=True, **settings
):
    """A run of one step; `right`: correct answers out of 100, None = not evaluated."""
    values = {"rewards/chosen": chosen, "rewards/rejected": rejected, "rewards/margin": chosen - rejected}
    line = StepMetrics(split="train", step=1, epoch=0, consumed_pairs=1, values=values)
    started = RunEvent(time="2024", attempt=1, job="j", event="started", step=0, max_steps=1)
    folder = Path(f"{loss}-{beta}-{rate}-{seed}")
    return Run(
        folder=folder, loss=loss, losses=(loss,), beta=beta, learning_rate=rate, seed=seed, settings=settings,
        lines={"train": [line]}, seconds=1.0, score=None if right is None else score(right, degenerate=degenerate),
        state=State(folder=folder, events=[started, *([DONE] if done else [])], failures=[]),
    )  # fmt: skip


def said(*runs, base=None):
    return summary(arrange(list(runs), base))


def line_with(sentences, text):
    return next((line for line in sentences if text in line), "")


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"dpo": -1.0, "dpop": -2.0, "minordpo": 3.0}, "below zero for dpo (-1) and dpop (-2) and above zero"),
        ({"dpo": 1.0, "minordpo": -3.0}, "rewards/chosen ends below zero for minordpo (-3) and above zero for dpo"),
        ({"dpo": 0.0}, "rewards/chosen ends at zero for dpo (+0)."),
        (
            {"dpo": math.nan, "dpop": math.inf},
            "rewards/chosen ends at a non-finite value for dpo (+nan) and dpop (+inf).",
        ),
        ({"a": 1.0, "b": 2.0, "c": 3.0}, "rewards/chosen ends above zero for a (+1), b (+2) and c (+3)."),
    ],
)
def test_the_side_on_which_rewards_end(values, expected):
    assert expected in said(*(run(loss, chosen=value) for loss, value in values.items()))[0]


def test_settings_of_a_loss_are_counted_by_the_side_on_which_they_end():
    ends = [-3.0, -1.0, 2.0]
    sentence = said(*(run("dpo", 50, chosen=end, beta=0.1 * n) for n, end in enumerate(ends, start=1)))[0]
    assert sentence == (
        "rewards/chosen ends below zero for dpo at 2 of 3 settings (-3 to -1) "
        "and above zero for dpo at 1 of 3 settings (+2)."
    )


@pytest.mark.parametrize(
    ("right", "change"),
    # Wilson, n = 100: 50 % is 40.4 to 59.6; 30 % 21.9 to 39.6, 31 % 22.8 to 40.6; 69 % from 59.4, 70 % from 60.4
    [
        (30, "(lower)"),
        (31, "(no clear difference: the intervals overlap)"),
        (69, "(no clear difference: the intervals overlap)"),
        (70, "(higher)"),
    ],
)
def test_accuracies_differ_only_if_their_intervals_are_disjoint(right, change):
    sentence = line_with(said(run("dpo", right), base=score(50)), "Strict accuracy")
    assert sentence == f"Strict accuracy, against the base model's 50.0 %: dpo {right}.0 % {change}."


def test_without_a_base_nothing_is_compared_with_it():
    assert line_with(said(run("dpo", 50)), "base") == ""


def test_accuracies_of_many_settings_are_counted():
    runs = [run("dpo", right, beta=0.1 * n) for n, right in enumerate((10, 20, 50, 90), start=1)]
    sentence = line_with(said(*runs, base=score(50)), "Strict accuracy")
    assert sentence.endswith("dpo lower at 2, no clear difference at 1, higher at 1 of 4 settings.")


def test_where_a_loss_broke_and_how():
    sentences = said(
        run("dpo", 10, beta=0.02, rate=1e-5, degenerate=0.5), run("dpo", 12, beta=0.05, rate=1e-5),
        run("dpo", 14, beta=0.1, rate=1e-5), run("dpo", 50, beta=0.2, rate=1e-5),
        run("dpo", None, beta=0.2, rate=1e-6, chosen=math.nan), run("minordpo", 55), run("ipo"),
        base=score(50),
    )  # fmt: skip
    assert line_with(sentences, "dpo broke") == (
        "dpo broke at 4 of 5 settings: lr 1e-06, beta 0.2 (training values not finite); "
        "lr 1e-05, beta 0.02 (answers degenerate, accuracy clearly below the base model's); "
        "lr 1e-05, beta 0.05 and 0.1 (accuracy clearly below the base model's)."
    )
    assert line_with(sentences, "did not break").startswith("minordpo did not break")
    assert "ipo" not in "".join(line for line in sentences if "br" in line)  # nothing is known about it


def test_a_loss_that_is_scored_only_in_part_did_not_break_there():
    sentences = said(run("minordpo", 50), run("minordpo", None, beta=0.2), base=score(50))
    assert line_with(sentences, "did not break").startswith("minordpo (1 of 2 scored) did not break")


@pytest.mark.parametrize(
    ("rate", "base_rate", "expected"),
    # n = 100: a rate of 20 % is at least 13.3 %, of 14 % at least 8.5 %; 10 % is at most 17.4 %, 0 % at most 3.7 %
    [
        (0.04, None, False),
        (0.05, None, True),
        (0.14, 0.0, True),
        (0.04, 0.0, False),
        (0.2, 0.1, False),
        (0.3, 0.1, True),
    ],
)
def test_when_a_run_has_degenerated(rate, base_rate, expected):
    base = None if base_rate is None else score(50, degenerate=base_rate)
    assert is_degenerate(score(50, degenerate=rate), base) is expected


def test_one_degenerate_seed_is_counted():
    grid = arrange([run("dpo", 50, seed=1), run("dpo", 50, seed=2, degenerate=0.4)], None)
    (setting,) = grid.settings
    assert setting.breaks == ["answers degenerate in 1 of 2 seeds"]
    assert setting.is_degenerate


@pytest.mark.parametrize(("second", "relation"), [(50, "overlaps"), (30, "does not overlap")])
def test_the_best_and_whether_its_interval_overlaps(second, relation):
    sentence = line_with(said(run("dpo", second), run("minordpo", 60)), "The best")
    assert sentence.startswith(
        f"The best is minordpo, 60.0 % (50.2-69.1); its interval {relation} that of the runner-up, dpo, "
    )


def test_the_best_at_each_setting_is_counted():
    runs = [run("dpo", right, beta=beta) for right, beta in ((90, 0.1), (10, 0.2), (50, 0.3), (50, 0.4))]
    runs += [run("minordpo", right, beta=beta) for right, beta in ((20, 0.1), (80, 0.2), (55, 0.3))]
    sentences = said(*runs)
    assert line_with(sentences, "Compared at") == (
        "Compared at the same beta and learning rate, the best is minordpo at 2 of 3 settings (clearly at 1) "
        "and dpo at 1 of 3 settings (clearly at 1)."
    )
    without = said(*runs, run("ipo", 10, beta=0.1))
    assert line_with(without, "Compared at").endswith("(clearly at 1); without a score: ipo at 2.")
    assert line_with(sentences, "top score") == (
        "lr 1e-06: dpo at beta 0.1 has the top score, 90.0 % (82.6-94.5); "
        "its interval overlaps that of the runner-up, minordpo at beta 0.2, 80.0 % (71.1-86.7)."
    )


def test_equal_scores_have_no_best():
    assert "dpo and minordpo are tied at 60.0 % (50.2-69.1)." in said(run("dpo", 60), run("minordpo", 60))
    runs = [run("dpo", right, beta=beta) for right, beta in ((60, 0.1), (10, 0.2), (50, 0.3))]
    runs += [run("minordpo", right, beta=beta) for right, beta in ((60, 0.1), (80, 0.2), (50, 0.3))]
    assert line_with(said(*runs), "Compared at") == (
        "Compared at the same beta and learning rate, the best is minordpo at 1 of 3 settings (clearly at 1) "
        "and a tie at 2."
    )
    rows = document_of(arrange(runs, None)).best_table.rows
    assert [row[2] for row in rows] == [
        "dpo and minordpo",
        "minordpo",
        "dpo and minordpo",
    ]
    tops = said(run("dpo", 70, beta=0.1), run("dpo", 60, beta=0.2), run("minordpo", 70, beta=0.2))
    assert line_with(tops, "top score") == (
        "lr 1e-06: dpo at beta 0.1 and minordpo at beta 0.2 share the top score, 70.0 % (60.4-78.1)."
    )


def test_missing_runs_of_a_sweep_are_reported():
    runs = [run("dpo", 50), run("dpo", None, beta=0.2, done=False), run("minordpo", None)]
    assert line_with(said(*runs), "is incomplete") == (
        "The sweep is incomplete: 2 of 3 runs are complete; running, or killed: 1; scored: 1. "
        "The findings below cover only the available runs."
    )
    whole = [run("dpo", 50), run("dpo", 50, beta=0.2)]
    assert line_with(said(*whole), "is incomplete") == ""
    (sentence, *_) = summary(arrange(whole, None, ["left out: runs/ipo: not a run folder"]))
    assert "scored: 2; unreadable folders: 1." in sentence


def test_an_unfinished_run_has_no_final_value():
    going = [run("dpo", chosen=-5.0, done=False), run("dpo", chosen=-9.0, beta=0.2)]
    assert line_with(said(*going), "rewards/chosen ends") == "rewards/chosen ends below zero for dpo (-9)."
    found = {claim.text: claim for claim in claims(arrange(going, None))}
    assert found[ENDS].numbers.startswith("at 0 of 1 settings; rewards/chosen -9 to -9")
    assert found[BY_BETA].verdict == "not tested"
    assert math.isnan(arrange(going, None).settings[0].final("rewards/chosen"))
    seeds = [run("dpo", chosen=-1.0, done=False), run("dpo", chosen=-3.0, seed=2)]
    assert arrange(seeds, None).settings[0].final("rewards/chosen") == -3.0


def test_a_run_without_data_has_no_findings():
    bare = run("dpo")
    bare.lines = {}
    assert said(bare) == []


def test_the_interval_over_seeds_is_that_of_one_run_widened_to_every_seed():
    close = over_seeds(strict, [score(50), score(52)])
    assert (close.value, close.low, close.high) == (0.51, *wilson_interval(51, 100))
    far = over_seeds(strict, [score(20), score(80)])
    assert (far.value, far.low, far.high) == (0.5, 0.2, 0.8)
    assert over_seeds(strict, []) is None


# --- the paper's claims

ENDS = "DPO: rewards/chosen and rewards/rejected both end below zero"
ABOVE = "MinorDPO: rewards/chosen ends above zero"
BY_BETA = "DPO: the higher the beta, the lower the margin"
BY_RATE = "DPO: a higher learning rate gives a higher margin"
LOSES = "DPO loses at every setting"
WINS = "MinorDPO wins at most settings"
TOP = "MinorDPO has the top score at each learning rate"
SMALLER = "DPO gets worse as beta gets smaller"
DEGENERATES = "DPO degenerates at the highest learning rate and the smallest beta"
ACCEPTS = "MinorDPO tolerates the highest learning rate"
DPOP = "DPOP tolerates the highest learning rate, except at the smallest beta"


def at(loss, *rights, rate=1e-6, **more):
    """Runs at beta 0.1, 0.2, ..., with these numbers of right answers."""
    return [run(loss, right, beta=round(0.1 * n, 1), rate=rate, **more) for n, right in enumerate(rights, start=1)]


def fast(**rights):
    return [run(loss, right, rate=1e-5) for loss, right in rights.items()]


def margins(*ends, rate=1e-6):
    return [run("dpo", rejected=1 - end, beta=0.1 * n, rate=rate) for n, end in enumerate(ends, start=1)]


@pytest.mark.parametrize(
    ("text", "verdict", "runs"),
    [
        (ENDS, "seen", at("dpo", None, None, chosen=-1.0, rejected=-2.0)),
        (ENDS, "not seen", at("dpo", None, chosen=-1.0, rejected=-2.0) + at("dpo", None, rejected=1.0, rate=1e-5)),
        (ENDS, "not tested", at("minordpo", 50, 50)),
        (ABOVE, "seen", at("minordpo", None, None, chosen=1.0)),
        (ABOVE, "not seen", at("minordpo", None, None, chosen=-0.1)),
        (BY_BETA, "seen", margins(9, 5, 3) + margins(20, 10, rate=1e-5)),
        (BY_BETA, "not seen", margins(9, 5, 6) + margins(20, 10, rate=1e-5)),
        (BY_BETA, "not tested", margins(9) + margins(10, rate=1e-5)),
        (BY_RATE, "seen", margins(9, 5) + margins(20, 10, rate=1e-5)),
        (BY_RATE, "not seen", margins(9, 5) + margins(20, 4, rate=1e-5)),
        (BY_RATE, "not tested", margins(9, 5)),
        (LOSES, "seen", at("dpo", 20, 30) + at("minordpo", 60, 70)),
        (LOSES, "unclear", at("dpo", 20, 60) + at("minordpo", 60, 70)),
        (LOSES, "not seen", at("dpo", 20, 90) + at("minordpo", 60, 70)),
        (LOSES, "not tested", at("dpo", 20, 90)),
        (WINS, "seen", at("minordpo", 80, 80, 50) + at("dpo", 20, 20, 60)),
        (WINS, "unclear", at("minordpo", 80, 65, 50) + at("dpo", 20, 60, 60)),
        (WINS, "not seen", at("minordpo", 80, 50) + at("dpo", 20, 60)),
        (WINS, "not tested", at("minordpo", 80, 50)),
        (TOP, "seen", at("minordpo", 80, 70) + at("dpo", 20, 30) + fast(minordpo=90, dpo=9)),
        (TOP, "unclear", at("minordpo", 80) + at("dpo", 20, 30) + fast(minordpo=50, dpo=52)),
        (TOP, "not seen", at("minordpo", 80) + at("dpo", 20, 30) + fast(minordpo=50, dpo=80)),
        (TOP, "not tested", at("minordpo", 80, 80)),
        (SMALLER, "seen", at("dpo", 20, 60)),
        (SMALLER, "unclear", at("dpo", 20, 60) + at("dpo", 50, 60, rate=1e-5)),
        (SMALLER, "not seen", at("dpo", 20, 60) + at("dpo", 90, 60, rate=1e-5)),
        (SMALLER, "not tested", at("dpo", 20) + at("dpo", 20, rate=1e-5)),
        (DEGENERATES, "seen", at("dpo", 50) + at("dpo", 5, rate=1e-5, degenerate=0.9)),
        (DEGENERATES, "not seen", at("dpo", 50, degenerate=0.9) + at("dpo", 5, rate=1e-5)),
        (DEGENERATES, "not tested", at("dpo", 50, 50, degenerate=0.9)),
        (ACCEPTS, "seen", at("minordpo", 5) + at("minordpo", 50, 60, rate=1e-5)),
        (ACCEPTS, "not seen", at("minordpo", 50) + at("minordpo", 50, 5, rate=1e-5)),
        (ACCEPTS, "not tested", at("minordpo", 50, 60)),
        (DPOP, "seen", at("dpop", 50) + at("dpop", 5, 50, rate=1e-5)),
        (DPOP, "not seen", at("dpop", 50) + at("dpop", 50, 50, rate=1e-5)),
        (DPOP, "not seen", at("dpop", 50) + at("dpop", 5, 5, rate=1e-5)),
        (DPOP, "not tested", at("dpop", 50, 50)),
    ],
)  # fmt: skip
def test_a_claim_and_its_opposite(text, verdict, runs):
    found = {claim.text: claim for claim in claims(arrange(runs, score(50)))}
    assert found[text].verdict == verdict
    assert found[text].numbers


def test_every_claim_is_tested_and_few_runs_refute_none():
    found = claims(arrange(at("dpo", 50, 60), None))
    assert [claim.text for claim in found] == [
        ENDS, ABOVE, BY_BETA, BY_RATE, LOSES, WINS, TOP, SMALLER, DEGENERATES, ACCEPTS, DPOP,
    ]  # fmt: skip
    assert claims(arrange([run("dpo", 10), run("minordpo", 50)], None)) == []
