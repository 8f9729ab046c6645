"""A report from made-up run folders: numbers computed by hand, and incomplete folders."""

import csv
import json
import math

import pytest
import yaml
from PIL import Image

from nemo_minordpo.report import report
from nemo_minordpo.report.curves import smoothed
from nemo_minordpo.report.runs import read_run

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


def test_the_table_shows_the_numbers_of_the_folders(make, tmp_path, capsys):
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
    assert "rewards/chosen ends below zero for dpo (-12.3) and above zero for minordpo (+0.5)." in text
    assert "- minordpo: no score: " in text
    shown = capsys.readouterr().out
    assert "60.0 (53.0-67.0)" in shown
    assert "below zero for dpo" in shown


def test_the_rewards_of_a_loss_without_a_reference_are_not_taken_for_log_ratios(make, tmp_path):
    below = {"minordpo/rejected_below_reference": 1.0, "dpop/chosen_below_reference": 1.0}
    runs = [
        make("a", [line(1, 0.5, 0.25, **{"logps/chosen": -40.0}, **below)], loss="minordpo"),
        make("b", [line(1, -40.0, -60.0, loss=0.5, **{"logps/chosen": -40.0}, **below)], loss="simpo"),
    ]
    report(runs, base=None, output=tmp_path / "out")
    minordpo, simpo = rows_of_csv(tmp_path / "out")
    assert (minordpo["rewards/chosen"], minordpo["rejected_below"]) == ("0.5", "1.0")
    assert simpo["rewards/chosen"] == simpo["rewards/margin"] == simpo["rejected_below"] == simpo["chosen_below"] == ""
    text = (tmp_path / "out" / "report.md").read_text()
    assert "| simpo | - | - | - | - | - | - | 1 | - |" in text
    assert "rewards/chosen ends above zero for minordpo (+0.5)." in text
    assert "values not finite" not in text
    assert (
        "What a loss itself compares: minordpo: chosen - max(minordpo_floor, rejected); simpo: log pi(chosen)" in text
    )
    assert "No reference: simpo. Its rewards in the curves are log-probabilities" in text


def test_what_losses_compare_is_said_only_if_it_is_not_the_margin(make, tmp_path):
    report([make("a", [line(1, 0.5, 0.25)], loss="dpo")], base=None, output=tmp_path / "out")
    text = (tmp_path / "out" / "report.md").read_text()
    assert "What a loss itself compares" not in text
    assert "No reference" not in text


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


def test_values_that_are_not_numbers_are_reported_and_skipped_in_figures(make, tmp_path):
    lines = [line(step, 1.0 if step != 3 else math.nan, 0.0) for step in range(1, 6)]
    notes = notes_of(tmp_path, make("run", lines))
    assert "rewards/chosen is missing or not finite at 1 steps, first at step 3" in notes
    assert "rewards/margin is missing" in notes
    assert "rewards/rejected is missing" not in notes
    assert rows_of_csv(tmp_path / "out")[0]["rewards/chosen"] == "1.0"  # the last tenth is finite
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


def test_only_the_later_of_a_repeated_step_counts(make, tmp_path):
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
    for content in BAD_SCORES:
        (tmp_path / "score.json").write_bytes(content.encode(errors="surrogateescape"))
        with pytest.raises(ValueError, match=r"score.json: not a score"):
            report([run], base=tmp_path, output=out)
    for content in ("a: [", "model: 3", "", "- 1", "\x00"):
        (run / "config.yaml").write_text(content)
        with pytest.raises(ValueError, match=r"config.yaml: no"):
            report([run], base=None, output=out)
    assert not out.exists()


# one field each: missing, of the wrong type, outside its interval, outside 0 to 1
BAD_SCORES = [
    "{}", "[1", '{"unknown": 1}', "3", "\udcff", json.dumps({**SCORE, "strict_accuracy": "a"}),
    json.dumps({**SCORE, "strict_accuracy": 0.9}), json.dumps({**SCORE, "degenerate_rate": math.nan}),
    json.dumps({**SCORE, "flexible_interval_95": [0.1]}), json.dumps({**SCORE, "num_questions": 0}),
]  # fmt: skip


@pytest.mark.parametrize("content", BAD_SCORES)
def test_a_damaged_score_is_a_note_and_the_run_is_shown(make, tmp_path, content):
    run = make("run", [line(1, 1.0, 0.0)])
    (run / "evaluation").mkdir()
    (run / "evaluation" / "score.json").write_bytes(content.encode(errors="surrogateescape"))
    read = read_run(run)
    (note,) = read.notes
    assert "score.json: not a score as `minordpo evaluate` writes it" in note
    assert (read.score, read.final("rewards/chosen")) == (None, 1.0)


def test_folders_that_cannot_be_read_are_left_out_with_their_reason(make, tmp_path):
    good, bad = make("good", [line(1, 1.0, 0.0)]), make("bad", [line(1, 1.0, 0.0)], loss="ipo")
    (bad / "config.yaml").write_text("model: {dpo: {preference")
    notes = notes_of(tmp_path, tmp_path / "not_started", good, bad)
    assert f"left out: {tmp_path / 'not_started'}: not a run folder" in notes
    assert f"left out: {bad / 'config.yaml'}: not readable as YAML" in notes
    assert [row["model"] for row in rows_of_csv(tmp_path / "out")] == ["dpo"]


def test_damaged_lines_of_every_kind_are_left_out_and_the_others_count(make, tmp_path):
    run = make("run", [line(1, 1.0, 0.0)])
    bad = [
        b"\x00" * 40, b"\xff\xfe", b"[]", b"7", b'{"split": "train"}', b'{"step": "2"}',
        json.dumps({**line(2, 1.0, 0.0), "step": "2"}).encode(), json.dumps({**line(2, 1.0, 0.0), "step": 0}).encode(),
        json.dumps({**line(2, 1.0, 0.0), "values": [1]}).encode(), json.dumps(line(3, 3.0, 0.0)).encode()[:-9],
    ]  # fmt: skip
    with (run / "metrics.jsonl").open("ab") as metrics:
        metrics.write(b"\n".join([*bad, json.dumps(line(4, 5.0, 0.0)).encode()]) + b"\n")
    notes = notes_of(tmp_path, run)
    for number in range(2, 2 + len(bad)):
        assert f"metrics.jsonl:{number}: not a line of metrics, left out" in notes
    (row,) = rows_of_csv(tmp_path / "out")
    assert (row["rewards/chosen"], row["steps"]) == ("5.0", "4")


def test_values_of_another_type_count_as_missing(make):
    lines = [line(1, 1.0, 0.0), line(2, 1.0, 0.0)]
    lines[1]["values"] |= {"rewards/chosen": None, "loss": "low"}
    run = read_run(make("run", lines))
    assert math.isnan(run.final("rewards/chosen"))
    assert "loss" not in run.metrics
    assert "rewards/chosen is missing or not finite at 1 steps, first at step 2" in run.notes


def test_a_beta_that_is_not_a_number_is_a_note(make, tmp_path):
    run = make("run", [line(1, 1.0, 0.0)])
    (run / "config.yaml").write_text(
        "model: {dpo: {preference_loss: dpo, ref_policy_kl_penalty: x}, optim: {lr: 1e-5}}"
    )
    assert "model.dpo.ref_policy_kl_penalty is not a number but 'x'" in notes_of(tmp_path, run)
    (row,) = rows_of_csv(tmp_path / "out")
    assert (row["beta"], row["learning_rate"]) == ("", "1e-05")  # YAML 1.1 reads 1e-5 as a string


def test_an_earlier_report_is_replaced_only_with_overwrite(make, tmp_path):
    run, out = make("run", [line(1, 1.0, 0.0)]), tmp_path / "out"
    report([run], base=None, output=out)
    with pytest.raises(ValueError, match="exists already"):
        report([run], base=None, output=out)
    report([run], base=None, output=out, overwrite=True)
    names = ["figures", "numbers", "report.csv", "report.html", "report.md", "rewards.png"]
    assert sorted(item.name for item in out.iterdir()) == names


def test_outdated_figures_of_an_earlier_report_are_removed(make, tmp_path):
    scored, out = make("scored", [line(1, 1.0, 0.0)], score={}), tmp_path / "out"
    report([scored], base=None, output=out)
    assert (out / "figures/score.png").exists()
    (out / "numbers/mine.txt").touch()
    report([make("bare", [line(1, 1.0, 0.0)])], base=None, output=out, overwrite=True)
    assert not (out / "figures/score.png").exists()
    assert "score.png" not in (out / "report.md").read_text()
    assert (out / "numbers/mine.txt").exists()


def test_smoothing_is_a_centred_mean_over_a_tenth():
    assert smoothed([1.0, 5.0, 3.0]) == [1.0, 5.0, 3.0]  # too short to be smoothed
    values = [0.0] * 10 + [6.0] + [0.0] * 9  # 20 values: reach 1
    assert smoothed(values)[8:13] == [0.0, 2.0, 2.0, 2.0, 0.0]
    assert smoothed([6.0] + [0.0] * 19)[0] == 3.0  # at the edge, only two values are within reach
    holes = smoothed([math.nan, 4.0] + [math.nan] * 18)
    assert holes[:3] == [4.0, 4.0, 4.0]
    assert math.isnan(holes[3])
