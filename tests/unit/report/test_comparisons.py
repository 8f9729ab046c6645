"""Paired tests and differing answers of a report: on answers whose outcomes are given, and on unusable ones."""

import csv
import json
from html.parser import HTMLParser

import pytest

from nemo_minordpo.errors import UserError
from nemo_minordpo.report import report
from nemo_minordpo.report.answers import read_answers
from nemo_minordpo.report.axes import arrange
from nemo_minordpo.report.comparisons import comparisons, sentences, unpaired
from nemo_minordpo.report.differing import MOST_PROBLEMS, RIGHT, WRONG, differing
from nemo_minordpo.report.document import document_of
from nemo_minordpo.report.runs import read_run, read_score
from nemo_minordpo.report.score_table import score_table
from tests.unit.report.sweep import metrics_line, write_answers, write_config, write_score

LETTERS = {"r": "right", "w": "wrong", "f": "flexible", "d": "degenerate"}


def outcomes(letters):
    return [LETTERS[letter] for letter in letters]


@pytest.fixture
def make(tmp_path):
    def folder(loss, letters=None, *, held_out=None, outputs=None, **settings):
        name = "-".join([loss, *map(str, settings.values())])
        run = write_config(tmp_path / name, loss=loss, **settings)
        lines = [metrics_line(1, {"loss": 1.0})]
        if held_out is not None:
            lines.append(metrics_line(1, {"logps/accuracy": held_out, "rewards/accuracy": 0.75}, "validation"))
        (run / "metrics.jsonl").write_text("".join(lines))
        (run / "model.nemo").touch()
        if letters is not None:
            write_answers(run / "evaluation", outcomes(letters), outputs=outputs)
        return run

    return folder


@pytest.fixture
def base(tmp_path):
    def folder(letters):
        return write_answers(tmp_path / "base", outcomes(letters))

    return folder


def grid_of(*folders, base=None):
    score = None if base is None else read_score(base)
    answers = None if score is None else read_answers(base, score)
    return arrange([read_run(folder) for folder in folders], score, None, answers)


def by_names(found):
    return {(*one.names, one.rule): one for one in found}


def test_models_are_compared_with_the_base_and_with_one_another(make, base):
    # against the base (12 right): dpo loses 6 and gains none, minordpo gains 8 and loses none
    runs = [make("dpo", "w" * 6 + "r" * 6 + "w" * 12), make("minordpo", "r" * 20 + "w" * 4)]
    found = by_names(comparisons(grid_of(*runs, base=base("r" * 12 + "w" * 12))))
    assert list(found) == [("dpo", "base", "strict"), ("minordpo", "base", "strict"), ("minordpo", "dpo", "strict")]
    counts = {names[:2]: (one.only_first, one.only_second) for names, one in found.items()}
    assert counts == {("dpo", "base"): (0, 6), ("minordpo", "base"): (8, 0), ("minordpo", "dpo"): (14, 0)}
    # McNemar: 2 / 2^6, 2 / 2^8, 2 / 2^14; Holm: times 1, 2, 3
    assert [one.difference.p for one in found.values()] == pytest.approx([2**-5, 2**-7, 2**-13])
    assert [one.adjusted_p for one in found.values()] == pytest.approx([2**-5, 2**-6, 3 * 2**-13])
    assert [one.verdict for one in found.values()] == ["lower", "higher", "higher"]
    assert sentences(list(found.values())) == [
        "Strict accuracy, paired tests on the same problems, at 5 % after Holm's correction for 3 comparisons, "
        "significant: minordpo above base; minordpo above dpo; dpo below base."
    ]


def test_holms_correction_takes_significance_away(make, base):
    """6 to 0 is significant alone (p = 0.03), but not as one of two such comparisons."""
    alone = comparisons(grid_of(make("dpo", "w" * 6 + "r" * 6), base=base("r" * 12)))
    assert [one.verdict for one in alone] == ["lower"]
    runs = [make("dpo", "w" * 6 + "r" * 6), make("dpop", "r" * 6 + "w" * 6)]
    found = comparisons(grid_of(*runs, base=base("r" * 12)))
    assert [one.verdict for one in found] == ["not significant"] * 3
    assert sentences(found)[0].endswith("significant: no difference.")
    assert sentences(found)[1] == ("Strict accuracy, not significant: dpo and base; dpop and base; dpop and dpo.")


def test_only_equal_settings_are_compared(make, base):
    runs = [make("dpo", "rw", beta=0.1), make("dpo", "rw", beta=0.2), make("minordpo", "rr", beta=0.2)]
    found = comparisons(grid_of(*runs, base=base("rw")))
    assert [(one.first.name, one.names[1]) for one in found] == [
        ("dpo, beta 0.1, lr 2e-05", "base"),
        ("dpo, beta 0.2, lr 2e-05", "base"),
        ("minordpo", "base"),
        ("minordpo", "dpo"),
    ]


def test_seeds_are_paired_by_their_number(make):
    """Seed 2 of minordpo solves what seed 2 of dpo does not; seed 1 exists only once."""
    runs = [
        make("dpo", "w" * 8 + "r" * 2, seed=2), make("dpo", "r" * 10, seed=3),
        make("minordpo", "w" * 10, seed=1), make("minordpo", "r" * 8 + "w" * 2, seed=2),
        make("minordpo", "r" * 10, seed=3),
    ]  # fmt: skip
    grid = grid_of(*runs)
    (one,) = comparisons(grid)
    assert (one.num_seeds, one.num_problems, one.only_first, one.only_second) == (2, 10, 8, 2)
    assert one.difference.value == pytest.approx(0.3)
    assert "compared only on the seeds that both have: minordpo and dpo (2)" in unpaired(grid, [one])


def test_flexible_accuracy_is_tested_only_where_it_differs_from_strict(make, base):
    """The base answers in another format: by the flexible rule it is as good."""
    found = by_names(comparisons(grid_of(make("dpo", "r" * 10), base=base("f" * 10))))
    assert (found["dpo", "base", "strict"].only_first, found["dpo", "base", "strict"].verdict) == (10, "higher")
    assert (found["dpo", "base", "flexible"].only_first, found["dpo", "base", "flexible"].difference.p) == (0, 1.0)
    assert [sentence.partition(",")[0] for sentence in sentences(list(found.values()))] == [
        "Strict accuracy", "Flexible accuracy", "Flexible accuracy",
    ]  # fmt: skip
    alike = comparisons(grid_of(make("dpo", "r" * 10), base=base("w" * 10)))
    assert [one.rule for one in alike] == ["strict"]


def test_only_problems_that_both_answered_count(make, base):
    (one,) = comparisons(grid_of(make("dpo", "wwww"), base=base("rrrrrrrr")))
    assert (one.num_problems, one.only_second) == (4, 4)


def test_another_question_of_the_same_number_is_another_problem(make, base):
    run, folder = make("dpo", "rrrr"), base("rrrr")
    path = folder / "predictions.jsonl"
    path.write_text(path.read_text().replace("How many are 1 + 2?", "How many are 1 + 3?"))
    assert comparisons(grid_of(run, base=folder))[0].num_problems == 3


def test_scores_without_answers_are_noted(make, tmp_path):
    run = make("dpo", "rrrr")
    bare = write_score(tmp_path / "bare", 3, questions=4)
    grid = grid_of(run, base=bare)
    assert comparisons(grid) == []
    assert sentences([]) == []
    assert unpaired(grid, []) == [
        "not in the paired tests, because their answers were not read: base",
        "not in the paired tests, because no other model has the same seed and problems: dpo",
    ]


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda text: text[:-20], r"predictions.jsonl:4: not a prediction"),
        (lambda text: text.replace('"strict": "3"', '"strict": "three"'), r"predictions.jsonl:2: not a prediction"),
        (lambda text: text.replace('"strict": "3"', '"strict": "1/0"'), r"predictions.jsonl:2: not a prediction"),
        (lambda text: text.replace('"index": 1', '"index": "1"'), "wrong type"),
        (lambda text: text.partition("\n")[2], "not the answers that score.json is about"),
        (lambda text: text.replace('"strict": "3"', '"strict": "9"'), "not the answers that score.json is about"),
        (lambda text: "", "not the answers that score.json is about"),
    ],
)
def test_damaged_answers_are_a_note_and_the_score_still_counts(make, damage, reason):
    folder = make("dpo", "rrrr")
    path = folder / "evaluation/predictions.jsonl"
    path.write_text(damage(path.read_text()))
    with pytest.raises(UserError, match=reason):
        read_answers(folder / "evaluation", read_score(folder / "evaluation"))
    run = read_run(folder)
    assert run.answers is None
    assert run.score.num_questions == 4
    assert run.notes[0].startswith("not in the paired tests: ")


def test_scores_of_settings_have_intervals_over_problems_and_seeds(make, base):
    runs = [make("dpo", "r" * 5 + "f" * 5, held_out=0.5, seed=1), make("dpo", "r" * 5 + "fffdd", held_out=0.7, seed=2)]
    table = score_table(grid_of(*runs, base=base("r" * 10)))
    assert table.heads == [
        "model", "seeds", "strict, % (95 % interval)", "flexible, % (95 % interval)", "degenerate, % (95 % interval)",
        "strict over seeds and problems, % (95 % interval)", "held-out pairs, chosen likelier, %",
        "held-out pairs, chosen has the higher reward, %",
    ]  # fmt: skip
    assert table.rows[0][:3] == ["base", "-", "100.0 (72.2-100.0)"]
    # Wilson, n = 10: 5 right 23.7-76.3; 9 right on average 59.6-98.2, widened to 1.0; 1 degenerate 1.8-40.4, to 0.0
    assert table.rows[1][1:5] == ["2", "50.0 (23.7-76.3)", "90.0 (59.6-100.0)", "10.0 (0.0-40.4)"]
    # two equal seeds: 0.5 -+ t(9) sqrt(0.25 / 14) = 0.5 -+ 2.262 * 0.1336
    assert table.rows[1][5:] == ["50.0 (19.8-80.2)", "60.0", "75.0"]


def test_a_score_table_leaves_empty_columns_out(make):
    assert score_table(grid_of(make("dpo", "rw"))).heads[-1] == "degenerate, % (95 % interval)"
    assert score_table(grid_of(make("dpop"))).rows == []


def test_differing_problems_show_every_outcome(make, base):
    """Of 40 problems, 20 are lost by dpo alone, 3 by all but the base, 1 is gained by dpo alone, 16 are alike."""
    runs = [make("dpo", "w" * 20 + "www" + "r" + "w" * 16), make("minordpo", "r" * 20 + "www" + "w" + "w" * 16)]
    (one,) = differing(grid_of(*runs, base=base("r" * 20 + "rrr" + "w" + "w" * 16)))
    assert one.models == ["base", "dpo", "minordpo"]
    assert one.outcomes == {(RIGHT, WRONG, RIGHT): 20, (RIGHT, WRONG, WRONG): 3, (WRONG, RIGHT, WRONG): 1}
    assert len(one.shown) == MOST_PROBLEMS
    assert [shown.problem.index for shown in one.shown] == [0, 20, 23, 1, 21, 2, 22, 3]
    assert [prediction.strict for prediction in one.shown[0].predictions] == ["2", "1", "2"]


class Text(HTMLParser):
    """The text of each answer and heading of the page's section."""

    def __init__(self):
        super().__init__()
        self.found, self.tag = {"pre": [], "h4": [], "summary": []}, None

    def handle_starttag(self, tag, attrs):
        if tag in self.found:
            self.tag = tag
            self.found[tag].append("")

    def handle_endtag(self, tag):
        self.tag = None if tag == self.tag else self.tag

    def handle_data(self, data):
        if self.tag:
            self.found[self.tag][-1] += data


def test_the_page_shows_answers_side_by_side_as_text(make, base, tmp_path):
    outputs = ["<script>alert(1)</script> & more", "x" * 2000 + "THE END", "three", "four"]
    report(
        [make("dpo", "dfrr", outputs=outputs), make("minordpo", "rrrr", beta=0.1)], base=base("rrrr"),
        output=tmp_path / "out",
    )  # fmt: skip
    page = (tmp_path / "out/report.html").read_text()
    assert "<script>alert(1)" not in page
    text = Text()
    text.feed(page)
    assert text.found["summary"] == ["lr 2e-05, beta 0.1: base, dpo, minordpo differ on 2 of 4 problems"]
    assert text.found["h4"] == [
        "base right", "dpo wrong degenerate (loop)", "minordpo right",
        "base right", "dpo right, but not in the requested format", "minordpo right",
    ]  # fmt: skip
    shown = text.found["pre"]
    assert shown[1] == outputs[0]
    assert shown[4].startswith("x" * 900 + "\n[607 characters left out]\n")
    assert shown[4].endswith("THE END")


def test_page_markdown_and_csv_hold_the_same_comparisons(make, base, tmp_path):
    report([make("dpo", "w" * 6 + "r" * 6)], base=base("r" * 12), output=tmp_path / "out")
    with (tmp_path / "out/numbers/comparisons.csv").open() as text:
        (row,) = csv.DictReader(text)
    assert (row["model"], row["against"], row["only_second"], float(row["p_holm"])) == ("dpo", "base", "6", 2**-5)
    markdown = (tmp_path / "out/report.md").read_text()
    assert "| dpo | base | lower | -50.0 (" in markdown
    assert "## Scores" in markdown
    assert "McNemar's exact test" in markdown
    page = (tmp_path / "out/report.html").read_text()
    for cell in ("lower", "0.031", "dpo below base"):
        assert cell in page
    with (tmp_path / "out/numbers/scores.csv").open() as text:
        (row,) = csv.DictReader(text)
    assert (row["name"], float(row["strict"]), float(row["degenerate_high"])) == (
        "dpo",
        0.5,
        pytest.approx(0.2425, abs=1e-4),
    )


def test_several_samples_per_question_are_not_paired(make):
    folder = make("dpo", "rrrr")
    path = folder / "evaluation/score.json"
    drawn = {"num_samples": 4, "temperature": 0.7, "top_p": 1.0, "seed": 0}
    for rule in ("strict", "flexible"):
        drawn |= {f"{rule}_majority_accuracy": 0.5, f"{rule}_majority_interval_95": [0.4, 0.6]}
        drawn |= {f"{rule}_pass_at": {"4": 0.9}, f"{rule}_pass_at_interval_95": {"4": [0.8, 0.95]}}
    path.write_text(json.dumps(json.loads(path.read_text()) | drawn))
    (note, *_) = read_run(folder).notes
    assert note.endswith("predictions.jsonl: 4 answers to a question; paired tests need one")


def test_the_notes_of_the_base_are_shown(make, base):
    grid = grid_of(make("dpo", "rw"), base=base("rw"))
    assert "base: damaged" in document_of(grid, ["base: damaged"]).notes
