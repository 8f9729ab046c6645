"""On damaged run folders, `status` and `report` print what they can, or an error that names the file."""

import copy
import io
import json
import re
import shutil
import tempfile
from collections import Counter
from contextlib import redirect_stdout
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from nemo_minordpo import report as report_package
from nemo_minordpo.errors import UserError, refused_by_machine
from nemo_minordpo.report import report
from nemo_minordpo.report.status import print_status
from tests.fuzzing import FUZZ, NUM_EXAMPLES
from tests.unit.report.test_report import SCORE, line

STEPS = 6
METRICS, EVENTS = "metrics.jsonl", "events.jsonl"
FILES = (
    "config.yaml", METRICS, EVENTS, "evaluation/score.json", "failures/2024-01-01T00:00:02-0.json",
    "logs/waiting", "model.nemo", "evaluation/predictions.jsonl",
)  # fmt: skip
VALUES = [
    None, True, -1, 0, 10**30, 10**400, 1e308, -1e308, float("nan"), float("inf"), "", " ", "text", "1", "\0",
    "\x1b[31m", "\ud800", "[bold]", "<b>", "x" * 3000, [], [None], {}, {"a": [float("nan")]}, "2024-01-01",
    "9999-12-31T23:59:59+14:00", "0001-01-01T00:00:00",
]  # fmt: skip


def make(folder):
    """A finished and evaluated run that was resumed once."""
    config = {
        "model": {"dpo": {"preference_loss": "dpo", "ref_policy_kl_penalty": 0.1}, "optim": {"lr": 2e-5}, "seed": 1},
        "trainer": {"dpo": {"save_nemo": True}},
    }
    event = {"attempt": 1, "job": "job_7.0", "step": 0, "detail": "1 node", "max_steps": STEPS}
    named = [("begun", {}), ("started", {}), ("saved", {"step": 3}), ("alarm", {"step": 3}), ("stopped", {"step": 3})]
    named += [
        ("started", {"attempt": 2, "step": 3}),
        ("damaged", {"attempt": 2}),
        ("complete", {"attempt": 2, "step": STEPS}),
    ]
    events = [
        event | more | {"event": name, "time": f"2024-01-01T00:00:{second:02d}.000000+00:00"}
        for second, (name, more) in enumerate(named)
    ]
    more = {"loss": 0.5, "grad_norm": 1.0, "step_s": 2.0, "pairs_per_s": 4.0, "peak_memory_gib": 1.0}
    metrics = [line(step, -0.5 * step, -1.0 * step, **more) for step in range(1, STEPS + 1)]
    metrics += [line(step, -0.5, -1.0, split="validation", loss=0.6) for step in (3, 6)]
    failure = {
        "time": "2024-01-01T00:00:02.500000+00:00", "job": "job_7.0", "rank": 0, "node": "node1",
        "error": "RuntimeError: out of memory", "traceback": "",
    }  # fmt: skip
    contents = [
        yaml.safe_dump(config), *("".join(json.dumps(one) + "\n" for one in lines) for lines in (metrics, events)),
        json.dumps(SCORE), json.dumps(failure), "a node does not answer\n", "", _predictions(),
    ]  # fmt: skip
    for name, text in zip(FILES, contents, strict=True):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def _predictions():
    """The answers that SCORE is about."""
    answer = {"question": "?", "output": "3", "num_tokens": 1, "finished": True, "flexible": "3", "degenerate": None}
    rows = [{**answer, "index": n, "gold": "3", "strict": "3" if n < 100 else None} for n in range(200)]
    return "".join(json.dumps(row) + "\n" for row in rows)


@st.composite
def damages(draw):
    """Damage to one or two files: (name of the file, kind of damage)."""
    names = draw(st.lists(st.sampled_from(FILES[:5] * 3 + FILES[5:]), min_size=1, max_size=2, unique=True))
    return [(name, draw(st.sampled_from(KINDS)), draw(st.randoms(use_true_random=False))) for name in names]


def _truncated(data, random):
    return data[: random.randrange(len(data) + 1)]


def _flipped(data, random):
    data = bytearray(data)
    for _ in range(random.randint(1, 4)):
        if data:
            data[random.randrange(len(data))] ^= 1 << random.randrange(8)
    return bytes(data)


def _lines_changed(data, random):
    lines = data.splitlines(keepends=True)
    for _ in range(random.randint(1, 3)):
        if lines:
            at = random.randrange(len(lines))
            lines[at : at + 1] = [lines[at]] * random.choice((0, 2))
    if random.random() < 0.3:
        random.shuffle(lines)
    return b"".join(lines)


def _values_changed(data, random):
    """Replace or remove some values of the JSON or YAML; in a file of several lines, in some of the lines."""
    text = data.decode()
    try:
        values = [json.loads(one) for one in text.splitlines()]
        write = json.dumps
    except ValueError:
        values, write = [yaml.safe_load(text)], yaml.safe_dump
    for _ in range(random.randint(1, 3)):
        places = list(_places(values))
        if not places:
            break
        inside, key = random.choice(places)
        if random.random() < 0.15:
            del inside[key]
        else:
            inside[key] = copy.deepcopy(random.choice(VALUES))
    return "".join(write(one) + "\n" for one in values).encode(errors="surrogatepass")


def _places(value):
    for key in list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield value, key
        yield from _places(value[key])


KINDS = ["values", "values", "values", "truncated", "flipped", "lines", "folder", "gone", "binary"]
_OF_BYTES = {
    "values": _values_changed, "truncated": _truncated, "flipped": _flipped, "lines": _lines_changed,
    "binary": lambda _, random: random.randbytes(random.randint(1, 300)),
}  # fmt: skip


def damage(path, kind, random):
    if kind in _OF_BYTES:
        data = path.read_bytes()
        if data or kind == "binary":
            path.write_bytes(_OF_BYTES[kind](data, random))
        return
    path.unlink()
    if kind == "folder":
        path.mkdir()


def said_by(call):
    """(a command's output, the message of its UserError or "")."""
    terminal = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")  # text that cannot be encoded cannot be printed
    refused = ""
    try:
        with redirect_stdout(terminal):
            call()
    except (UserError, OSError) as error:
        refused = refused_by_machine(error) if isinstance(error, OSError) else str(error)
        if not refused:
            raise
    terminal.flush()
    said = terminal.buffer.getvalue().decode()
    assert said or refused
    return said, refused


NOT_FINITE = re.compile(r"(?<![\w.])[-+]?(?:nan|inf)(?![\w])")


def check(names, said, refused):
    """What must hold for every command's output."""
    assert not refused or any(name in refused for name in names), refused
    # a note may quote the value it is about, and says where it is; NaN stays NaN in curves and final values
    shown = [one for one in said.splitlines() if not any(name in one for name in names)]
    if METRICS not in names:
        assert not NOT_FINITE.search("\n".join(shown)), said


def has_unreadable_line(path):
    """Whether a JSON lines file has a line that is not a JSON object; blank lines do not count."""
    for text in path.read_bytes().split(b"\n") if path.is_file() else []:
        try:
            if text.strip() and not isinstance(json.loads(text), dict):
                return True
        except ValueError:
            return True
    return False


@pytest.fixture
def without_figures(monkeypatch):
    """Drawing takes most of the time, so only some of the cases draw."""
    monkeypatch.setenv("COLUMNS", "10000")  # a note is one line
    drawn = report_package._draw

    def draw(contents, output):
        draw.calls += 1
        return drawn(contents, output) if draw.calls % 10 == 0 else []

    draw.calls = 0
    monkeypatch.setattr(report_package, "_draw", draw)


def test_damaged_folders(without_figures):
    seen = Counter()

    @FUZZ
    @given(damages())
    def try_one(done):
        root = Path(tempfile.mkdtemp())
        try:
            folder = root / "run"
            make(folder)
            for name, kind, random in done:
                damage(folder / name, kind, random)
            names = [name for name, _, _ in done]
            for command in (
                lambda: print_status(folder),
                lambda: report([folder], base=None, output=root / "out"),
            ):
                said, refused = said_by(command)
                seen["refused" if refused else "reported"] += 1
                check(names, said, refused)
                for name in (EVENTS, METRICS):
                    if has_unreadable_line(folder / name):
                        assert refused or f"{name}:" in said, name
            if (root / "out/report.md").exists():
                seen["written"] += 1
                for path in (root / "out").rglob("*.*"):
                    if path.suffix in (".md", ".csv"):
                        check(names, path.read_text(), "")
        finally:
            shutil.rmtree(root)

    try_one()
    assert seen.total() >= NUM_EXAMPLES
    assert min(seen["refused"], seen["reported"]) > 0, seen


def test_a_whole_folder_is_reported(tmp_path, capsys):
    make(tmp_path / "run")
    assert print_status(tmp_path / "run")
    report([tmp_path / "run"], base=None, output=tmp_path / "out")
    assert (tmp_path / "out/rewards.png").exists()
    said = capsys.readouterr().out
    assert said.count("complete") >= 2
    check([], said, "")
    assert "not in the paired tests: " not in said  # the answers belong to the score
    assert NOT_FINITE.search("loss nan")
    assert NOT_FINITE.search("(-inf,")
    assert not NOT_FINITE.search("finance, infinite, info, run-nan_1")
