"""Which pairs lose their chosen response: the numbers by hand, and where they are shown."""

import csv
import json

import pytest

from nemo_minordpo.report import report
from nemo_minordpo.report.displacement import displacement, displacement_sentence
from nemo_minordpo.report.scored_pairs import MEASURES, MOVED, read_scored_pairs
from tests.unit.report.sweep import write_run


def pair(number, moved, **measures):
    values = dict.fromkeys(MEASURES, float(number)) | {MOVED: float(moved)} | measures
    return {"pair": f"train.jsonl:{number}", **values, "logps/chosen": -9.0}


def write_scored(run, rows):
    folder = run / "scored_pairs"
    folder.mkdir(parents=True)
    (folder / "pair_scores.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return run


def scored(rows):
    return {row["pair"]: {name: row[name] for name in (MOVED, *MEASURES)} for row in rows}


SETTING = {"name": "dpo", "loss": "dpo", "learning_rate": 1e-6, "beta": 0.1}
FALLING = [pair(number, 5 - number) for number in range(40)]  # the more alike, the further they fall
RISING = [pair(number, number) for number in range(40)]


def test_the_numbers_of_a_setting():
    found = displacement([scored(FALLING)], **SETTING)
    assert found is not None
    assert found.moved[0] == pytest.approx(5 - 19.5)
    assert found.moved[1] < found.moved[0] < found.moved[2]
    assert found.fallen == pytest.approx(34 / 40)
    assert {value[0] for value in found.correlations.values()} == {-1.0}
    assert found.bins == pytest.approx([5 - 4 * tenth - 1.5 for tenth in range(10)])


def test_seeds_are_averaged_over_the_pairs_that_all_scored():
    found = displacement([scored(FALLING), scored(RISING[:30])], **SETTING)
    assert (found.num_pairs, found.num_seeds) == (30, 2)
    assert found.bins == pytest.approx([2.5] * 10)
    assert found.correlations["ches/total"] is None  # 2.5 for every pair


def test_few_pairs_say_nothing():
    assert displacement([scored(FALLING[:19])], **SETTING) is None
    assert displacement([scored(FALLING), scored(RISING[25:])], **SETTING) is None
    assert displacement([], **SETTING) is None


def test_the_sentence_counts_settings():
    settings = [displacement([scored(rows)], **SETTING) for rows in (FALLING, RISING, FALLING)]
    assert "at 2 of 3 settings, less at 1 " in displacement_sentence(settings)
    assert displacement_sentence([]) == ""


def test_the_report_shows_them(tmp_path):
    runs = [
        write_scored(write_run(tmp_path / f"{loss}-{seed}", loss=loss, beta=0.1, rate=1e-6, seed=seed, steps=6), rows)
        for loss, rows in (("dpo", FALLING), ("minordpo", RISING))
        for seed in (1, 2)
    ]
    report(runs, base=None, output=tmp_path / "out")
    out = tmp_path / "out"
    text, page = (out / "report.md").read_text(), (out / "report.html").read_text()
    assert "| dpo | 40 | -14.50 (" in text
    assert "at 1 of 2 settings, less at 1 " in text
    assert "at 1 of 2 settings, less at 1 " in page
    assert "figures/displacement.png" in text
    assert '"displacements":[{"loss":0' in page
    with (out / "numbers/displacement.csv").open() as lines:
        rows = list(csv.DictReader(lines))
    assert [row["name"] for row in rows] == ["dpo", "minordpo"]
    assert float(rows[1]["tenth_10"]) == pytest.approx(37.5)


def test_a_report_without_scored_pairs_has_no_such_part(tmp_path):
    report(
        [write_run(tmp_path / "run", loss="dpo", beta=0.1, rate=1e-6, seed=1, steps=6)],
        base=None,
        output=tmp_path / "out",
    )
    assert not (tmp_path / "out/figures/displacement.png").exists()
    assert not (tmp_path / "out/numbers/displacement.csv").exists()
    assert "lose their chosen response" not in (tmp_path / "out/report.md").read_text()
    assert '"displacements":[]' in (tmp_path / "out/report.html").read_text()


@pytest.mark.parametrize(
    "line",
    ['{"pair": "a:1"}', "{", "[]", json.dumps(pair(1, float("nan"))), json.dumps(pair(1, 2) | {"pair": 3}), "\xff"],
)
def test_damaged_scores_become_a_note(tmp_path, line):
    run = write_scored(tmp_path / "run", FALLING)
    path = run / "scored_pairs/pair_scores.jsonl"
    notes = []
    assert len(read_scored_pairs(path.parent, notes)) == 40
    assert not notes
    path.write_text(path.read_text() + line + "\n", encoding="latin-1")
    assert read_scored_pairs(path.parent, notes) == {}
    assert "not the scores of pairs against a reference" in notes[0]
