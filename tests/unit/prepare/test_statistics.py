import json
import math
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemo_minordpo.prepare.statistics import LONGEST_COMPARED, MEASURES, draw_histograms, measure, summarise
from nemo_minordpo.records import PreferencePair


def _slow_edit_distance(one, other):
    """Wagner and Fischer's table, row by row."""
    row = list(range(len(other) + 1))
    for i, a in enumerate(one, start=1):
        before, row = row, [i]
        for j, b in enumerate(other, start=1):
            row.append(min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (a != b)))
    return row[-1]


def _slow_shared(one, other):
    shared = 0
    while shared < min(len(one), len(other)) and one[shared] == other[shared]:
        shared += 1
    return shared


def _measured(chosen, rejected, prompt="P"):
    pair = PreferencePair(prompt=prompt, chosen_response=chosen, rejected_response=rejected)
    return dict(zip(MEASURES, measure(pair), strict=True))


@given(
    st.text("abc \u00e9\u4e2d\U0001f600", min_size=1, max_size=40),
    st.text("abc \u00e9\u4e2d\U0001f600", min_size=1, max_size=40),
)
def test_distances_match_the_slow_form(one, other):
    found = _measured(one, other)
    longer = max(len(one), len(other))
    assert found["edit_distance"] == pytest.approx(_slow_edit_distance(one, other) / longer)
    assert found["shared_prefix"] == pytest.approx(_slow_shared(one, other) / longer)


@pytest.mark.parametrize(
    ("chosen", "rejected", "distance", "shared"),
    [
        ("It is 24.", "It is 25.", 1 / 9, 7 / 9),
        ("abc", "abcdef", 0.5, 0.5),
        ("abc", "xyz", 1, 0),
        ("kitten", "sitting", 3 / 7, 0),
    ],
)
def test_distances_by_hand(chosen, rejected, distance, shared):
    found = _measured(chosen, rejected, prompt="What?")
    assert (found["edit_distance"], found["shared_prefix"]) == (pytest.approx(distance), pytest.approx(shared))
    assert found["prompt_characters"] == 5
    assert (found["chosen_characters"], found["rejected_characters"]) == (len(chosen), len(rejected))


def test_responses_of_megabytes_are_not_compared():
    start = time.process_time()
    found = _measured("ab" * 2_000_000, "ba" * 2_000_000)
    assert time.process_time() - start < 5
    assert math.isnan(found["edit_distance"])
    assert found["shared_prefix"] == 0
    assert not math.isnan(_measured("a" * LONGEST_COMPARED, "b")["edit_distance"])


def test_the_summary_matches_numpy_and_counts_what_was_not_measured(tmp_path):
    draw = np.random.default_rng(1)
    values = np.column_stack([draw.random(500), draw.random(500), *draw.integers(1, 9000, (3, 500))]).astype(np.float32)
    values[:20, 0] = np.nan
    found = summarise(values)
    assert list(found) == list(MEASURES)
    assert (found["edit_distance"]["pairs"], found["edit_distance"]["not_measured"]) == (480, 20)
    assert found["edit_distance"]["p5"] == pytest.approx(np.nanpercentile(values[:, 0], 5), abs=1e-6)
    assert found["prompt_characters"]["mean"] == pytest.approx(values[:, 2].astype(float).mean(), abs=1e-6)
    assert found["chosen_characters"]["max"] == values[:, 3].max()
    json.dumps(found, allow_nan=False)
    draw_histograms(values, tmp_path / "a.png")
    draw_histograms(np.full((3, 5), np.nan), tmp_path / "b.png")
    assert (tmp_path / "a.png").stat().st_size > (tmp_path / "b.png").stat().st_size > 1000
    assert summarise(np.full((3, 5), np.nan))["edit_distance"] == {"pairs": 0, "not_measured": 3}
