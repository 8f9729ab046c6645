"""The report of a generated sweep: its files, the same numbers on the page and in the CSV, the page in a browser."""

import csv
import json
import math
import re
import shutil
import subprocess
from html import unescape
from html.parser import HTMLParser

import pytest
from PIL import Image

from nemo_minordpo.report import report
from nemo_minordpo.report.axes import arrange
from nemo_minordpo.report.figures.coefficient import coefficient, margins
from nemo_minordpo.report.figures.score import draw_score
from tests.unit.report.sweep import BETAS, LOSSES, RATES, write_events, write_run, write_sweep
from tests.unit.report.test_summary import run

STEPS = 60


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """48 runs, one unfinished, one with non-finite values, one with a strange name, and two unreadable folders."""
    folder = tmp_path_factory.mktemp("sweep")
    runs, base = write_sweep(folder, steps=STEPS)
    running = write_run(folder / "running", loss="minordpo", beta=0.5, rate=1e-5, seed=1, steps=STEPS, stop=20)
    with (running / "metrics.jsonl").open("a") as metrics:
        metrics.write('{"split": "train", "step": 21, "epo')
    lost = write_run(folder / "lost", loss="dpo", beta=0.5, rate=1e-5, seed=1, steps=STEPS)
    write_events(lost, STEPS, end="complete")
    lines = [json.loads(line) for line in (lost / "metrics.jsonl").read_text().splitlines()]
    for line in lines[40:]:
        line["values"] = dict.fromkeys(line["values"], math.nan)
    (lost / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "empty").mkdir()
    bad = write_run(folder / "bad", loss="<img src=x onerror=alert(1)>", beta=0.5, rate=1e-5, seed=1, steps=STEPS)
    unread = write_run(folder / "unread", loss="dpo", beta=0.5, rate=1e-6, seed=1, steps=STEPS)
    (unread / "config.yaml").write_bytes(b"\x00\xff")
    out = folder / "out"
    report([*runs, running, lost, folder / "empty", unread, bad], base=base, output=out)
    return out


def table(path):
    with path.open() as text:
        return list(csv.DictReader(text))


def page_data(page):
    text = re.search(r'<script type="application/json" id="data">(.*?)</script>', page.read_text(), re.DOTALL)
    return json.loads(text.group(1))


def number(text):
    return None if text == "" else float(text)


def test_the_papers_figures_are_drawn(sweep):
    expected = {f"rewards-{loss}-lr-{rate}.png" for loss in LOSSES for rate in ("1e-06", "1e-05")}
    expected |= {"coefficient.png", "score.png", "rewards-img-src-x-onerror-alert-1-lr-1e-05.png"}
    assert {path.name for path in (sweep / "figures").iterdir()} == expected
    text = (sweep / "report.md").read_text()
    for path in [sweep / "rewards.png", *(sweep / "figures").iterdir()]:
        assert f"({path.relative_to(sweep)})" in text
        with Image.open(path) as image:
            assert image.format == "PNG"
            assert min(image.size) > 400


def test_a_degenerate_setting_is_crossed_in_the_figure_of_scores(sweep, tmp_path):
    degenerate = [row["name"] for row in table(sweep / "numbers/settings.csv") if "degenerate" in row["breaks"]]
    assert degenerate == ["dpo, beta 0.02, lr 1e-05", "dpop, beta 0.02, lr 1e-05"]
    black = []
    for rate in (0.0, 0.9):
        draw_score(arrange([run("dpo", 50, degenerate=rate), run("dpo", 50, beta=0.2)], None), tmp_path / "score.png")
        with Image.open(tmp_path / "score.png") as image:
            pixels = image.convert("RGB").getcolors(maxcolors=1_000_000)
        black.append(sum(count for count, colour in pixels if colour == (0, 0, 0)))
    assert black[1] > black[0] + 50


def test_coefficient_is_the_papers(sweep):
    assert coefficient(0.1, 0.0) == 0.05
    assert coefficient(0.1, -20.0) == pytest.approx(0.1 / (1 + math.exp(-2)))
    assert coefficient(10.0, 400.0) == 0.0
    assert coefficient(0.1, 20.0) == pytest.approx(0.1 / (1 + math.exp(2)))
    rows = table(sweep / "numbers/coefficient.csv")
    assert [float(row["margin"]) for row in rows] == margins([*BETAS, 0.5])
    for row in rows:
        assert float(row["beta 0.2"]) == coefficient(0.2, float(row["margin"]))


def test_page_and_csv_hold_the_same_numbers(sweep):
    data = page_data(sweep / "report.html")
    names = [run["name"] for run in data["runs"]]
    curves = {}
    for row in table(sweep / "numbers/curves.csv"):
        curves.setdefault(row["run"], {})[int(row["first_step"])] = row
    assert list(curves) == names
    compared = 0
    for shown in data["runs"]:
        for metric in data["metrics"]:
            for step, value in zip(data["steps"]["x"], shown["curves"][metric], strict=True):
                row = curves[shown["name"]].get(int(step))
                assert value == (None if row is None else number(row[metric]))
                compared += value is not None
    assert compared > 48 * STEPS * 10
    for row in table(sweep / "numbers/ends.csv"):
        shown = data["runs"][names.index(row["run"])]
        assert shown["score"] == number(row["strict_accuracy"])
        assert shown["ends"] == {metric: number(row[metric]) for metric in data["candidates"]}


def test_settings_on_the_page_and_in_the_csv_are_the_same(sweep):
    data = page_data(sweep / "report.html")
    settings = table(sweep / "numbers/settings.csv")
    for shown, row in zip(data["settings"], settings, strict=True):
        assert shown["name"] == row["name"]
        assert shown["score"] == (
            None if not row["low"] else [float(row[n]) for n in ("strict_accuracy", "low", "high")]
        )
        assert "; ".join(shown["breaks"]) == row["breaks"]
    over_seeds = {}
    for row in table(sweep / "numbers/curves_over_seeds.csv"):
        over_seeds.setdefault(row["setting"], []).append(row)
    averaged = [shown for shown in data["settings"] if shown["curves"]]
    assert len(averaged) == len(LOSSES) * len(BETAS) * len(RATES) == len(over_seeds)
    for shown in averaged:
        rows = over_seeds[shown["name"]]
        for place, what in enumerate(("mean", "low", "high")):
            for metric in ("rewards/chosen", "rewards/margin", "loss"):
                assert shown["curves"][metric][place] == [number(row[f"{metric} {what}"]) for row in rows]
    base = table(sweep / "report.csv")[0]
    assert data["base"] == [
        float(base[f"strict_{name}"]) for name in ("accuracy", "interval_95_low", "interval_95_high")
    ]


def test_health_table(sweep):
    rows = {row["model"]: row for row in table(sweep / "report.csv")}
    lost, running = rows["dpo, beta 0.5, lr 1e-05"], rows["minordpo, beta 0.5, lr 1e-05"]
    assert (lost["state"], lost["steps"], lost["max_steps"]) == ("complete", str(STEPS), str(STEPS))
    assert (int(lost["first_not_finite"]) > 30, int(lost["not_finite"]) > 20) == (True, True)
    assert (running["state"], running["steps"]) == ("running, or killed", "20")
    healthy = rows["minordpo, beta 0.1, lr 1e-05, seed 1"]
    assert (healthy["not_finite"], healthy["pairs_per_s"], healthy["peak_memory_gib"]) == ("0", "60.0", "3.5")
    assert float(healthy["rejected_below"]) == pytest.approx(0.95, abs=0.01)
    ruined = rows["dpo, beta 0.02, lr 1e-05, seed 1"]
    assert (ruined["first_alarm"], healthy["first_alarm"]) == (str(STEPS // 2), "")
    text = (sweep / "report.md").read_text()
    assert "dpo, beta 0.5, lr 1e-05: rewards/chosen is missing or not finite" in text
    assert "lr 1e-05, beta 0.5 (training values not finite" in text
    assert "unreadable folders: 2" in text
    assert "metrics.jsonl:26: not a line of metrics, left out" in text  # 20 steps, 2 validations, 3 answer checks
    assert "not finished: it has 20 of 60 steps and no model.nemo; running, or killed" in text


class Outside(HTMLParser):
    """Collects everything a page would load from elsewhere, and its elements."""

    def __init__(self):
        super().__init__()
        self.loads, self.tags = [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.loads += [
            value for name, value in attrs if name in ("src", "href") and not value.startswith(("#", "data:"))
        ]


def test_the_page_is_one_file_and_names_are_text(sweep):
    page = Outside()
    page.feed((sweep / "report.html").read_text())
    assert page.loads == []
    assert "img" not in page.tags
    assert "url(" not in (sweep / "report.html").read_text()


def test_the_page_of_many_long_runs_stays_small(tmp_path):
    """4 runs of 3000 steps, a twelfth of a 48-run sweep: their share of an 8 MB page is 0.66 MB."""
    runs, base = write_sweep(tmp_path, steps=3000, losses=("dpo",), betas=(0.1,))
    report(runs, base=base, output=tmp_path / "out")
    assert (tmp_path / "out/report.html").stat().st_size < 660_000
    assert "each point is the mean over 13 steps" in (tmp_path / "out/report.html").read_text()
    assert len(page_data(tmp_path / "out/report.html")["steps"]["x"]) == 231


# ---- in a browser

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
in_a_browser = pytest.mark.skipif(
    CHROMIUM is None, reason="no chromium, chromium-browser or google-chrome in PATH: the page was not opened"
)

# Uses the page as a reader would and stores what it sees in the document.
VISITOR = """
<script>
const seen = {};
const count = name => document.querySelectorAll(`[data-panels=${name}] canvas`).length;
const parts = ["scores", "curves", "coefficient", "scatter"];
const counts = () => Object.fromEntries(parts.map(name => [name, count(name)]));
const change = (id, value) => {
  const control = document.getElementById(id);
  if (control.type === "checkbox") control.checked = value; else control.value = value;
  control.dispatchEvent(new Event("change"));
};
const chip = (kind, place) => document.querySelector(`button[data-kind=${kind}][data-place="${place}"]`).click();
const point = name => {
  const over = document.querySelector(`[data-panels=${name}] .u-over`), box = over.getBoundingClientRect();
  const middle = {clientX: box.left + box.width / 2, clientY: box.top + box.height / 2};
  const at = {...middle, bubbles: true, pointerType: "mouse"};
  over.dispatchEvent(new PointerEvent("pointerenter", at));
  over.dispatchEvent(new MouseEvent("mouseenter", at));
  over.dispatchEvent(new MouseEvent("mousemove", at));
};
const tip = () => document.querySelector(".tip")?.innerText ?? null;
const inked = () => [...document.querySelectorAll("[data-panels] canvas")].filter(canvas =>
  canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data.some(value => value)).length;
const frame = () => new Promise(done => setTimeout(done, 30));
(async () => {
  await frame();
  seen.start = counts();
  seen.inked = inked();
  seen.overflow = document.documentElement.scrollWidth - innerWidth;
  for (const name of parts) { point(name); await frame(); seen["tip of " + name] = tip(); }
  chip("loss", 0); await frame(); seen.withoutDpo = counts();
  chip("loss", 0); await frame(); seen.again = counts();
  change("seeds", "each"); await frame(); point("curves"); await frame(); seen.tipOfSeeds = tip();
  document.querySelector("[data-run='0']").click(); await frame();
  point("curves"); await frame(); seen.tipWithoutOne = tip();
  change("view", "settings"); await frame(); seen.bySetting = counts();
  change("one-scale", true); change("seeds", "mean"); await frame(); seen.oneScale = inked();
  change("view", "betas"); change("metric", "validation/loss"); await frame(); seen.validation = inked();
  document.body.dataset.seen = JSON.stringify(seen);
})();
</script>
"""


def dump(page, folder):
    """The browser's console output for a page, and the document after its scripts have run."""
    done = subprocess.run(
        [
            CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files",
            f"--user-data-dir={folder / 'profile'}", "--enable-logging=stderr", "--virtual-time-budget=30000",
            "--window-size=1600,2200", "--dump-dom", page.as_uri(),
        ],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    return [line for line in done.stderr.splitlines() if "CONSOLE" in line], done.stdout


def visit(page, folder, *, width):
    """Open a copy of the page with the visitor in it, in a frame: a window cannot be as narrow as a phone."""
    copy, outer = folder / "visited.html", folder / "outer.html"
    copy.write_text(page.read_text().replace("</body>", VISITOR + "</body>"))
    outer.write_text(
        f'<iframe src="visited.html" style="width:{width}px;height:2000px;border:0"></iframe><script>'
        "const wait = setInterval(() => { const seen = frames[0].document.body?.dataset.seen;"
        "if (seen) { clearInterval(wait); document.body.dataset.seen = seen; } }, 50)</script>"
    )
    complaints, dom = dump(outer, folder)
    seen = re.search(r'data-seen="(.*?)"', dom)
    return complaints, json.loads(unescape(seen.group(1))) if seen else None


@in_a_browser
@pytest.mark.parametrize("width", [390, 1400])
def test_the_page_in_a_browser(sweep, tmp_path, width):
    complaints, seen = visit(sweep / "report.html", tmp_path, width=width)
    assert complaints == []
    # scores: one panel per learning rate; curves: one per loss and learning rate, the strange loss at one rate only
    assert seen["start"] == seen["again"] == {"scores": 2, "curves": 7, "coefficient": 1, "scatter": 1}
    assert seen["inked"] == 11
    assert seen["overflow"] <= 0
    assert seen["tip of curves"].startswith("step ")
    assert "beta 0.02" in seen["tip of curves"]
    assert re.search(r"strict accuracy\s+\d+\.\d % \(", seen["tip of scores"])
    assert "seed 2" in seen["tip of scores"]
    assert "rewards/chosen" in seen["tip of scatter"]
    assert seen["tip of coefficient"].startswith("margin ")
    assert seen["withoutDpo"] == {"scores": 2, "curves": 5, "coefficient": 1, "scatter": 1}
    assert "beta 0.02 seed 1" in seen["tipOfSeeds"]
    assert "beta 0.02 seed 1" not in seen["tipWithoutOne"]
    assert "beta 0.02 seed 2" in seen["tipWithoutOne"]
    assert seen["bySetting"]["curves"] == 27
    assert seen["oneScale"] == 31
    assert seen["validation"] == 11


@in_a_browser
def test_a_page_of_two_runs_in_a_browser(tmp_path):
    runs = [
        write_run(tmp_path / loss, loss=loss, beta=0.1, rate=1e-5, seed=1, steps=12, stop=stop)
        for loss, stop in (("dpo", None), ("minordpo", 2))
    ]
    report(runs, base=None, output=tmp_path / "out")
    complaints, dom = dump(tmp_path / "out/report.html", tmp_path)
    assert complaints == []
    # one score, the rewards of two settings, the coefficient; one run is too few for metrics against score
    assert 'data-charts="4"' in dom


@in_a_browser
def test_a_script_error_on_the_page_would_be_noticed(sweep, tmp_path):
    broken = tmp_path / "broken.html"
    broken.write_text((sweep / "report.html").read_text().replace('"use strict";', '"use strict"; noSuchThing();', 1))
    complaints, _ = visit(broken, tmp_path, width=1400)
    assert any("noSuchThing" in line for line in complaints)
