"""A report from made-up run folders: numbers worked by hand, and folders that lack something."""

import csv
import json
import math

import pytest
import yaml
from PIL import Image

from nemo_minordpo.report import report
from nemo_minordpo.report.rewards import smoothed
from nemo_minordpo.report.runs import read_run, read_score
from nemo_minordpo.report.table import Row, reading

SCORE = {
    "model": "hf", "questions": "test.jsonl", "num_questions": 200,
    "strict_accuracy": 0.5, "strict_interval_95": [0.43, 0.57],
    "flexible_accuracy": 0.55, "flexible_interval_95": [0.48, 0.62],
    "degenerate_rate": 0.02, "no_answer_rate": 0.03, "unfinished_rate": 0.01, "mean_tokens": 60.0,
}  # fmt: skip


def line(step, chosen, rejected, split="train", **values):
    rewards = {"rewards/chosen": chosen, "rewards/rejected": rejected, "rewards/margin": chosen - rejected}
    return {"split": split, "step": step, "epoch": 0, "consumed_pairs": 8 * step, "values": {**rewards, **values}}


@pytest.fixture
def make(tmp_path):
    def folder(name, lines, *, loss="dpo", score=None, finished=True, save_nemo=True):
        run = tmp_path / name
        run.mkdir()
        config = {
            "model": {"dpo": {"preference_loss": loss, "ref_policy_kl_penalty": 0.1}, "optim": {"lr": 2e-5}},
            "trainer": {"dpo": {"save_nemo": save_nemo}},
        }
        (run / "config.yaml").write_text(yaml.safe_dump(config))
        if lines is not None:
            (run / "metrics.jsonl").write_text("".join(json.dumps(item) + "\n" for item in lines))
        if finished:
            (run / "model.nemo").touch()
        if score is not None:
            write_score(run / "evaluation", **score)
        return run

    return folder


def write_score(folder, **changes):
    folder.mkdir(parents=True)
    (folder / "score.json").write_text(json.dumps({**SCORE, **changes}))
    return folder


def rows_of_csv(folder):
    with (folder / "report.csv").open() as text:
        return list(csv.DictReader(text))


def test_the_end_of_a_run_is_the_mean_over_its_last_tenth(make):
    # 20 steps: the last tenth is steps 19 and 20, chosen 19 and 20 -> 19.5
    run = read_run(make("run", [line(step, float(step), -2.0 * step) for step in range(1, 21)]))
    assert run.final("rewards/chosen") == 19.5
    assert run.final("rewards/rejected") == -39.0
    assert run.final("rewards/margin") == 58.5


@pytest.mark.parametrize(("num_steps", "expected"), [(1, 1.0), (9, 9.0), (19, 19.0), (29, 28.5)])
def test_the_last_tenth_is_at_least_one_step(make, num_steps, expected):
    run = read_run(make("run", [line(step, float(step), 0.0) for step in range(1, num_steps + 1)]))
    assert run.final("rewards/chosen") == expected


def test_the_table_holds_what_the_folders_hold(make, tmp_path, capsys):
    runs = [
        make("a", [line(1, -1.0, -4.0, step_s=61.0), line(2, -12.34, -20.0, step_s=2.5)], loss="dpo", score={}),
        make("b", [line(1, 0.5, 0.25)], loss="minordpo"),
    ]
    base = write_score(tmp_path / "base", strict_accuracy=0.6, strict_interval_95=[0.53, 0.67])
    report(runs, base=base, output=tmp_path / "out")
    first, dpo, minordpo = rows_of_csv(tmp_path / "out")
    assert first["model"] == "base"
    assert float(first["strict_accuracy"]) == 0.6
    assert first["rewards/chosen"] == first["steps"] == ""
    assert dpo["model"] == "dpo"
    assert float(dpo["rewards/chosen"]) == -12.34
    assert float(dpo["rewards/margin"]) == pytest.approx(7.66)
    assert (float(dpo["strict_interval_95_low"]), float(dpo["strict_interval_95_high"])) == (0.43, 0.57)
    assert (dpo["steps"], float(dpo["seconds"]), float(dpo["learning_rate"])) == ("2", 63.5, 2e-5)
    assert minordpo["strict_accuracy"] == minordpo["seconds"] == ""
    text = (tmp_path / "out" / "report.md").read_text()
    assert "| model | strict, % (95 % interval) | flexible % | degenerate, % | rewards/chosen |" in text
    assert "| dpo | 50.0 (43.0-57.0) | 55.0 | 2.0 | -12.34 | -20.00 | +7.66 | 2 | 1:03 |" in text
    assert "| minordpo | - | - | - | +0.50 | +0.25 | +0.25 | 1 | - |" in text
    assert "rewards/chosen ends below zero under dpo (-12.3) and above zero under minordpo (+0.5)." in text
    assert "- minordpo: no score: " in text
    shown = capsys.readouterr().out
    assert "60.0 (53.0-67.0)" in shown
    assert "below zero under dpo" in shown


def test_the_figure_has_curves(make, tmp_path):
    runs = [
        make(f"run{number}", [line(s, s * number, -s) for s in range(1, 9)], loss=f"l{number}") for number in range(4)
    ]
    report(runs, base=None, output=tmp_path / "out")
    with Image.open(tmp_path / "out" / "rewards.png") as image:
        assert image.format == "PNG"
        assert image.width > 1000
        colours = {colour for _, colour in image.convert("RGB").getcolors(maxcolors=1_000_000)}
    assert {(0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00), (0x00, 0x9E, 0x73)} <= colours


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"dpo": -1.0, "dpop": -2.0, "minordpo": 3.0}, "below zero under dpo (-1) and dpop (-2) and above zero"),
        ({"dpo": 1.0, "minordpo": -3.0}, "rewards/chosen ends below zero under minordpo (-3) and above zero under dpo"),
        ({"dpo": 0.0}, "rewards/chosen ends at zero under dpo (+0)."),
        ({"dpo": math.nan, "dpop": math.inf}, "rewards/chosen ends as no number under dpo (+nan) and dpop (+inf)."),
        ({"a": 1.0, "b": 2.0, "c": 3.0}, "rewards/chosen ends above zero under a (+1), b (+2) and c (+3)."),
    ],
)
def test_the_reading_follows_the_rewards(values, expected):
    (sentence,) = reading([Row(model=name, score=None, chosen=value) for name, value in values.items()])
    assert expected in sentence


@pytest.mark.parametrize(
    ("interval", "change"),
    [
        ([0.30, 0.429], "lower"),
        ([0.30, 0.43], "no clear difference: the intervals overlap"),
        ([0.57, 0.70], "no clear difference: the intervals overlap"),
        ([0.571, 0.70], "higher"),
    ],
)
def test_accuracies_differ_only_when_their_intervals_do(tmp_path, interval, change):
    base = read_score(write_score(tmp_path / "base"))
    score = read_score(write_score(tmp_path / "dpo", strict_interval_95=interval))
    (sentence,) = reading([Row(model="base", score=base), Row(model="dpo", score=score)])
    assert sentence == f"Strict accuracy, against 50.0 % of the base model: dpo 50.0 % ({change})."


def test_nothing_is_read_out_of_nothing():
    assert reading([Row(model="dpo", score=None)]) == []


def notes_of(tmp_path, *runs):
    report(list(runs), base=None, output=tmp_path / "out")
    text = (tmp_path / "out" / "report.md").read_text()
    return text.partition("## Notes")[2]


def test_a_run_without_steps_is_reported(make, tmp_path):
    for name, lines in (("none", None), ("empty", []), ("validation", [line(1, 1.0, 0.0, split="validation")])):
        assert "no training step in" in notes_of(tmp_path / name, make(name, lines)), name
        assert rows_of_csv(tmp_path / name / "out")[0]["rewards/chosen"] == ""


def test_an_early_end_is_reported(make, tmp_path):
    lines = [line(1, 1.0, 0.0), line(2, 1.0, 0.0)]
    stopped = notes_of(tmp_path / "a", make("stopped", lines, finished=False))
    assert "not finished: it has 2 steps and no model.nemo" in stopped
    assert "not finished" not in notes_of(tmp_path / "b", make("whole", lines))
    assert "not finished" not in notes_of(tmp_path / "c", make("kept_no_nemo", lines, finished=False, save_nemo=False))


def test_values_that_are_no_number_are_reported_and_drawn_around(make, tmp_path):
    lines = [line(step, 1.0 if step != 3 else math.nan, 0.0) for step in range(1, 6)]
    notes = notes_of(tmp_path, make("run", lines))
    assert "rewards/chosen is missing or not finite at 1 steps, first at step 3" in notes
    assert "rewards/margin is missing" in notes
    assert "rewards/rejected is missing" not in notes
    assert rows_of_csv(tmp_path / "out")[0]["rewards/chosen"] == "1.0"  # the end is sound
    all_nan = make("nan", [line(step, math.nan, math.nan) for step in range(1, 6)])
    assert "at 5 steps, first at step 1" in notes_of(tmp_path / "nan_out", all_nan)


def test_a_missing_value_is_reported(make, tmp_path):
    lines = [line(1, 1.0, 0.0), line(2, 1.0, 0.0)]
    del lines[1]["values"]["rewards/rejected"]
    assert "rewards/rejected is missing or not finite at 1 steps, first at step 2" in notes_of(
        tmp_path, make("run", lines)
    )


def test_half_a_line_is_reported_with_its_place(make, tmp_path):
    run = make("run", [line(1, 1.0, 0.0), line(2, 2.0, 0.0)])
    with (run / "metrics.jsonl").open("a") as metrics:
        metrics.write('{"split": "train", "st')
    assert "metrics.jsonl:3: not a line of metrics, left out" in notes_of(tmp_path, run)
    assert rows_of_csv(tmp_path / "out")[0]["steps"] == "2"


def test_of_a_step_done_twice_the_later_counts(make, tmp_path):
    lines = [line(1, 1.0, 0.0, step_s=2.0), line(2, 5.0, 0.0, step_s=2.0), line(2, 7.0, 0.0, step_s=2.0)]
    assert "1 steps were done twice" in notes_of(tmp_path, make("run", lines))
    (row,) = rows_of_csv(tmp_path / "out")
    assert (float(row["rewards/chosen"]), row["steps"], float(row["seconds"])) == (7.0, "2", 6.0)


def test_two_runs_of_one_loss_have_two_names(make, tmp_path):
    report([make("a", [line(1, 1.0, 0.0)]), make("b", [line(1, 2.0, 0.0)])], base=None, output=tmp_path / "out")
    assert [row["model"] for row in rows_of_csv(tmp_path / "out")] == [
        f"dpo ({tmp_path / 'a'})",
        f"dpo ({tmp_path / 'b'})",
    ]


def test_bad_folders_are_named(make, tmp_path):
    run, out = make("run", [line(1, 1.0, 0.0)]), tmp_path / "out"
    with pytest.raises(ValueError, match=r"nowhere: not a run folder of `minordpo train`"):
        report([tmp_path / "nowhere"], base=None, output=out)
    with pytest.raises(ValueError, match=r"score.json: no such file; `minordpo evaluate` writes it"):
        report([run], base=tmp_path, output=out)
    (run / "evaluation").mkdir()
    for content in ("{}", "[1", '{"unknown": 1}', "3"):
        (run / "evaluation" / "score.json").write_text(content)
        with pytest.raises(ValueError, match=r"score.json: not a score"):
            report([run], base=None, output=out)
    for content in ("a: [", "model: 3", "", "- 1", "\x00"):
        (run / "config.yaml").write_text(content)
        with pytest.raises(ValueError, match=r"config.yaml: no"):
            report([run], base=None, output=out)
    assert not out.exists()


def test_an_earlier_report_is_replaced_only_when_told(make, tmp_path):
    run, out = make("run", [line(1, 1.0, 0.0)]), tmp_path / "out"
    report([run], base=None, output=out)
    with pytest.raises(ValueError, match="exists already"):
        report([run], base=None, output=out)
    report([run], base=None, output=out, overwrite=True)
    assert sorted(item.name for item in out.iterdir()) == ["report.csv", "report.md", "rewards.png"]


def test_smoothing_is_a_centred_mean_over_a_tenth():
    assert smoothed([1.0, 5.0, 3.0]) == [1.0, 5.0, 3.0]  # too short to be smoothed
    values = [0.0] * 10 + [6.0] + [0.0] * 9  # 20 values: reach 1
    assert smoothed(values)[8:13] == [0.0, 2.0, 2.0, 2.0, 0.0]
    assert smoothed([6.0] + [0.0] * 19)[0] == 3.0  # at the end two values are near
    holes = smoothed([math.nan, 4.0] + [math.nan] * 18)
    assert holes[:3] == [4.0, 4.0, 4.0]
    assert math.isnan(holes[3])
