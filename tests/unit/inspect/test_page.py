"""The page: differences are marked, texts cannot break out of it, and a browser shows it wide and narrow."""

import json
import re
from html import unescape

import pytest

from nemo_minordpo.inspect.histogram import histogram
from nemo_minordpo.inspect.marked import end_of, marked
from nemo_minordpo.inspect.run import inspect_pairs
from tests.unit.inspect.test_inspect import PLANTED, clean, write
from tests.unit.report.test_sweep_report import dump, in_a_browser

ODD = {
    "prompt": "\u202e<script>document.body.dataset.broken = 1</script>",
    "chosen_response": "<b>yes</b> & so on. " + "x" * 3000,
    "rejected_response": "no <img src=x onerror='document.body.dataset.broken = 1'>" + "word" * 200,
}


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    rows = [clean(number) for number in range(20)]
    rows += [clean(0) | clean_prompt(number) | changes for number, (changes, _) in enumerate(PLANTED.values())]
    rows += [clean(3), ODD]
    path = write(folder / "<i>pairs.jsonl", rows)
    inspect_pairs([str(path)], output=folder / "out", workers=1)
    return folder / "out" / "inspect.html"


def clean_prompt(number):
    return {"prompt": clean(100 + number)["prompt"]}


def plain(html):
    return unescape(re.sub(r"<[^>]+>", "", html))


def test_what_only_one_response_has_is_marked():
    one, other = marked("It is 4 < 5, so 12.", "It is 4 < 5, so 13.")
    assert one == '<pre dir="auto">It is 4 &lt; 5, so <mark>12</mark>.</pre>'
    assert other == '<pre dir="auto">It is 4 &lt; 5, so <mark>13</mark>.</pre>'
    one, other = marked("a b", "a new b")
    assert (one, other) == ('<pre dir="auto">a b</pre>', '<pre dir="auto">a <mark>new </mark>b</pre>')


def test_a_long_text_is_shown_around_the_first_difference():
    one, other = marked("a " * 1000 + "old" + " b" * 1000, "a " * 1000 + "new" + " b" * 1000)
    assert "<mark>old</mark>" in one
    assert "<mark>new</mark>" in other
    assert "[1,800 characters]" in one
    assert "[803 characters]" in one
    assert len(plain(one)) < 1500
    assert plain(end_of("a" * 5000 + "Why?")).endswith("aWhy?")


def test_control_characters_are_visible():
    one, _ = marked("a\0b\u202ec\U0001f469\u200d\U0001f680\n\t", "x")
    assert plain(one) == "a\u2400b[U+202E]c\U0001f469\u200d\U0001f680\n\t"


def test_texts_and_names_are_escaped(page):
    text = page.read_text(encoding="utf-8")
    assert "<script" not in text
    assert "<img" not in text
    assert "<i>pairs" not in text
    assert "&lt;i&gt;pairs.jsonl" in text
    assert "http" not in re.sub(r"http-equiv", "", text)  # needs no network


def test_every_planted_kind_is_shown(page):
    titles = re.findall(r"<summary>(.*?)</summary>", page.read_text(encoding="utf-8"))
    shown = {title.partition(":")[0] for title in titles}
    planted = {flag for _, flags in PLANTED.values() for flag in flags} - {"refusal", "cut"}  # shown by their parts
    assert planted <= shown
    assert "duplicate" in shown
    assert {"closest responses", "chosen response longest against the rejected one"} <= shown


def test_a_histogram_has_all_values():
    import numpy as np

    drawn = histogram(np.array([1.0, 1.0, 1.0, 2.0]), title="a < b")
    heights = [float(height) for height in re.findall(r'height="([\d.]+)"/', drawn)]
    assert len(heights) == 2
    assert heights[0] == pytest.approx(3 * heights[1], abs=0.2)
    assert "a &lt; b" in drawn
    assert "<rect" in histogram(np.array([5.0]), title="one value")


VISITOR = """<script>
document.querySelectorAll("details").forEach(one => one.open = true);
const bars = document.querySelectorAll("svg rect");
document.body.dataset.seen = JSON.stringify({
  overflow: document.documentElement.scrollWidth - innerWidth, broken: document.body.dataset.broken ?? null,
  marks: document.querySelectorAll("mark").length, bars: bars.length, fill: getComputedStyle(bars[0]).fill,
  bold: document.querySelectorAll("pre b, pre img").length,
});
</script>"""


@in_a_browser
@pytest.mark.parametrize("width", [1400, 390])
def test_the_page_in_a_browser(page, tmp_path, width):
    text = page.read_text(encoding="utf-8")
    (tmp_path / "visited.html").write_text(text.replace("</body>", f"{VISITOR}</body>"), encoding="utf-8")
    outer = tmp_path / "outer.html"
    copy = "frame.contentDocument.body.dataset.seen"
    outer.write_text(
        f'<body><iframe id="frame" src="visited.html" width="{width}" height="900"></iframe>'
        f"<script>frame.onload = () => {{ document.body.dataset.seen = {copy}; }};</script></body>"
    )
    console, document = dump(outer, tmp_path)
    seen = json.loads(unescape(re.search(r'data-seen="(.*?)"', document)[1]))
    assert console == []
    assert seen["overflow"] <= 0
    assert seen["broken"] is None
    assert seen["bold"] == 0
    assert seen["marks"] > 20
    assert seen["bars"] > 20
    assert seen["fill"] != "rgb(0, 0, 0)"  # the page's colour, not the default
