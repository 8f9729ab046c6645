"""One build for all data sets: order, workers, interruptions, duplicates, splits, refusals, and what is written."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock

from nemo_minordpo.prepare import build as build_module
from nemo_minordpo.prepare import workers
from nemo_minordpo.prepare.build import BuildOptions
from nemo_minordpo.prepare.chat import Prompting
from nemo_minordpo.prepare.preference import prepare_preference
from nemo_minordpo.records import Manifest, PreferencePair
from tests.unit.prepare.templates import LLAMA_3_2, QWEN_3, save_tokenizer


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(build_module, "CHUNK_ROWS", 7)


def _row(number, *, question=None):
    prompt = question or f"What is {number} + 1?"
    return {"prompt": prompt, "chosen": f"It is {number + 1}.", "rejected": f"It is {number + 2}.", "id": number}


def _write(path, rows):
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def _prepare(source, output, *, seed=1234, **options):
    return prepare_preference([str(source)], output, seed=seed, options=BuildOptions(**options))


def _lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def _bytes(folder):
    """All that a build wrote but the hour and the command."""
    found = {path.name: path.read_bytes() for path in folder.iterdir()}
    manifest = json.loads(found.pop("manifest.json"))
    del manifest["created"], manifest["command"]
    return found, manifest


@pytest.fixture
def mixed(tmp_path):
    """Good rows, broken ones, duplicates, and questions that are asked more than once."""
    rows = [_row(number, question=f"Question {number % 23}?" if number % 3 else None) for number in range(90)]
    rows[10], rows[40], rows[41] = "{broken", {"prompt": "P", "chosen": "same", "rejected": "same"}, "[]"
    return _write(tmp_path / "rows.jsonl", [*rows, rows[0], rows[0], rows[5]])


def test_every_row_is_a_pair_or_a_rejected_row_in_its_order(mixed, tmp_path):
    manifest = _prepare(mixed, tmp_path / "out", num_validation=20, max_rejected=0.1)
    pairs = _lines(tmp_path / "out/train.jsonl") + _lines(tmp_path / "out/validation.jsonl")
    rejected = _lines(tmp_path / "out/rejected_rows.jsonl")
    sources = [row["source"] for row in [*pairs, *rejected]]
    assert Counter(sources) == Counter(f"{mixed}:{number}" for number in range(1, 94))
    for rows in (_lines(tmp_path / f"out/{name}.jsonl") for name in ("train", "validation", "rejected_rows")):
        numbers = [int(row["source"].rpartition(":")[2]) for row in rows]
        assert numbers == sorted(numbers)
    assert manifest.counts == {
        "rows": 93, "pairs": 87, "rejected": 6, "train": 67, "validation": 20,
        "repeated_questions": 87 - len({row["prompt"] for row in pairs}),
    }  # fmt: skip
    assert manifest.rejected == {
        "duplicate": 3, "invalid JSON": 1, "chosen_response and rejected_response are equal": 1,
        "a JSON object was expected": 1,
    }  # fmt: skip
    assert rejected[-1]["reason"] == f"duplicate: prompt and responses are those of {mixed}:6"
    assert [row["reason"] for row in rejected[-3:-1]] == [f"duplicate: prompt and responses are those of {mixed}:1"] * 2
    assert manifest.unread == {"id": 90}  # of the rows that gave a pair, duplicates included
    assert Manifest.read(tmp_path / "out") == manifest
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "rows.jsonl"]


def test_output_is_the_same_whatever_the_number_of_workers(mixed, tmp_path):
    for number in (1, 3):
        _prepare(mixed, tmp_path / f"out{number}", num_validation=20, max_rejected=0.1, workers=number)
    assert _bytes(tmp_path / "out1") == _bytes(tmp_path / "out3")
    assert len(_bytes(tmp_path / "out1")[0]) == 5


def test_the_split_keeps_a_question_on_one_side_and_depends_on_the_seed(tmp_path):
    written = ("question {}?", " Question\t{}? ")
    rows = [_row(number, question=written[number % 2].format(number % 17)) for number in range(100)]
    source = _write(tmp_path / "rows.jsonl", rows)
    held_out = {}
    for seed in (1, 2):
        _prepare(source, tmp_path / str(seed), num_validation=30, seed=seed)
        train, validation = (
            {" ".join(row["prompt"].lower().split()) for row in _lines(tmp_path / str(seed) / f"{side}.jsonl")}
            for side in ("train", "validation")
        )
        assert len(train | validation) == 17
        assert not train & validation
        held_out[seed] = validation
    assert held_out[1] != held_out[2]


def test_validation_is_as_large_as_whole_questions_allow(tmp_path, capsys):
    source = _write(tmp_path / "rows.jsonl", [_row(number, question=f"Question {number % 4}?") for number in range(40)])
    manifest = _prepare(source, tmp_path / "out", num_validation=25)
    assert manifest.counts["validation"] == 20
    assert "25 validation pairs were asked for" in capsys.readouterr().out
    for number in (9, 40):
        with pytest.raises(ValueError, match="a question stays on one side"):
            _prepare(source, tmp_path / "other", num_validation=number)


def test_one_pair_per_question(mixed, tmp_path):
    manifest = _prepare(mixed, tmp_path / "out", one_per_question=True, max_rejected=0.1)
    prompts = [row["prompt"] for row in _lines(tmp_path / "out/train.jsonl")]
    assert len(prompts) == len(set(prompts)) == manifest.counts["pairs"]
    assert manifest.counts["repeated_questions"] == 0
    again = [row for row in _lines(tmp_path / "out/rejected_rows.jsonl") if "another pair" in row["reason"]]
    assert len(again) == manifest.rejected["another pair of the question"] == 87 - len(prompts)
    assert again[0]["reason"].endswith("is kept")
    assert manifest.counts["rows"] == manifest.counts["pairs"] + manifest.counts["rejected"]


def test_too_many_rejected_rows_are_refused_with_reasons_and_kept_for_another_try(tmp_path, capsys):
    rows = [_row(number) for number in range(50)]
    rows[3] = rows[30] = {"prompt": "P", "chosen": 3, "rejected": "R"}
    rows[20] = "{"
    source = _write(tmp_path / "rows.jsonl", rows)
    with pytest.raises(
        ValueError, match=r"3 of 50 rows \(6.0%\) cannot be used, more than --max-rejected 0.05"
    ) as told:
        _prepare(source, tmp_path / "out", max_rejected=0.05)
    first, second, third = str(told.value).splitlines()[1:4]
    assert first == f"  2 x {source}:4: chosen must be a string or messages: found int"
    assert second.startswith(f"  1 x {source}:21: invalid JSON")
    assert third.endswith(".out.parts/rejected_rows.jsonl")
    assert len(_lines(tmp_path / ".out.parts/rejected_rows.jsonl")) == 3
    assert not (tmp_path / "out").exists()
    assert _prepare(source, tmp_path / "out", max_rejected=0.06).counts["pairs"] == 47
    assert "went on with an interrupted build: 8 of 8 chunks were there" in capsys.readouterr().err


def test_parts_of_other_rows_or_settings_are_not_used(tmp_path, capsys):
    source = _write(tmp_path / "rows.jsonl", [*map(_row, range(20)), "{"])
    for options in ({}, {"seed": 2}, {"seed": 2, "limit": 21}):
        with pytest.raises(ValueError, match="cannot be used"):
            _prepare(source, tmp_path / "out", max_rejected=0, **options)
    told = capsys.readouterr().err
    assert "an unfinished build of something else is forgotten:\n  seed: 1234 there, 2 now" in told
    assert "limit: None there, 21 now" in told
    _write(source, map(_row, range(100, 121)))
    _prepare(source, tmp_path / "out", max_rejected=0)
    assert [row["prompt"] for row in _lines(tmp_path / "out/train.jsonl")] == [
        _row(n)["prompt"] for n in range(100, 121)
    ]
    assert "went on" not in capsys.readouterr().err


# Time zones that never have the same day.
_DAY, _ANOTHER_DAY = "Pacific/Kiritimati", "Etc/GMT+12"


def _dates(folder):
    return {re.search("Today Date: (.*)", row["prompt"])[1] for row in _lines(folder / "train.jsonl")}


def test_a_build_that_is_resumed_on_another_day_has_the_date_of_the_first(tmp_path, move_to, capsys):
    hf = save_tokenizer(tmp_path / "hf", LLAMA_3_2, eos="<|eot_id|>")
    chat = Prompting(template="chat", tokenizer=hf, template_options={})
    source = _write(tmp_path / "rows.jsonl", [*map(_row, range(20)), "{"])

    def prepare(name, *, max_rejected, prompting=chat, **options):
        return prepare_preference(
            [str(source)], tmp_path / name, prompting=prompting,
            options=BuildOptions(max_rejected=max_rejected, workers=1, **options),
        )  # fmt: skip

    move_to(_DAY)
    with pytest.raises(ValueError, match="cannot be used"):
        prepare("out", max_rejected=0)
    first = re.search(r"the date, which is (\S+) in all prompts", capsys.readouterr().err)[1]
    for part in sorted((tmp_path / ".out.parts").glob("*.npz"))[1:]:
        part.unlink()
    move_to(_ANOTHER_DAY)
    manifest = prepare("out", max_rejected=1)
    told = capsys.readouterr().err
    assert "went on with an interrupted build: 1 of 3 chunks" in told
    assert f"prints the date, which is {first} in all prompts" in told
    assert manifest.settings["date"] == first
    assert len(_dates(tmp_path / "out")) == 1

    # the controls: begun on this day, it has another date; and with the date as a setting the same bytes
    other = prepare("other", max_rejected=1)
    assert other.settings["date"] != first
    assert _dates(tmp_path / "other") != _dates(tmp_path / "out")
    prepare("again", max_rejected=1, prompting=replace(chat, date=first))
    assert _bytes(tmp_path / "again") == _bytes(tmp_path / "out")


def test_parts_of_another_date_are_not_used(tmp_path, move_to, capsys):
    hf = save_tokenizer(tmp_path / "hf", LLAMA_3_2, eos="<|eot_id|>")
    source = _write(tmp_path / "rows.jsonl", [*map(_row, range(20)), "{"])

    def prepare(*, max_rejected, limit=None, **prompting):
        return prepare_preference(
            [str(source)], tmp_path / "out", prompting=Prompting(template="chat", tokenizer=hf, **prompting),
            options=BuildOptions(max_rejected=max_rejected, limit=limit),
        )  # fmt: skip

    with pytest.raises(ValueError, match="cannot be used"):
        prepare(max_rejected=0, date="2020-02-29")
    with pytest.raises(ValueError, match="cannot be used"):
        prepare(max_rejected=0, date="2021-03-01")
    assert "forgotten:\n  date: 2020-02-29 there, 2021-03-01 now" in capsys.readouterr().err
    # another build altogether does not inherit the date
    assert prepare(max_rejected=1, limit=21).settings["date"] not in ("2020-02-29", "2021-03-01", None)


def test_a_note_shows_its_first_pair(tmp_path, capsys):
    hf = save_tokenizer(tmp_path / "hf", QWEN_3)
    rows = [_row(number) for number in range(20)]
    rows[0]["chosen"], rows[0]["rejected"] = ("<think>\n\n</think>\n\nOne.", "<think>\n\n</think>\n\nTwo.")
    source = _write(tmp_path / "rows.jsonl", rows)
    prompting = Prompting(template="chat", tokenizer=hf)
    manifest = prepare_preference([str(source)], tmp_path / "out", prompting=prompting)
    note = "the template would rewrite the response"
    assert manifest.counts[f"note: {note}"] == 19
    assert (
        f"  19 pairs: {note}; the first is {source}:2\n"
        "    as written:      'It is 2.'\n"
        "    by the template: '<think>\\n\\n</think>\\n\\nIt is 2.'\n"
    ) in capsys.readouterr().out
    without = replace(prompting, template_options={"enable_thinking": False})
    rejected_one = BuildOptions(max_rejected=1)
    manifest = prepare_preference([str(source)], tmp_path / "without", prompting=without, options=rejected_one)
    assert manifest.settings["template_options"] == {"enable_thinking": False}
    assert manifest.rejected == {"both prompt and response open <think>": 1}
    assert f"note: {note}" not in manifest.counts


def test_a_damaged_part_is_made_again(tmp_path):
    source = _write(tmp_path / "rows.jsonl", [*map(_row, range(40)), "{"])
    with pytest.raises(ValueError, match="cannot be used"):
        _prepare(source, tmp_path / "out", max_rejected=0)
    parts = sorted((tmp_path / ".out.parts").glob("*.npz"))
    assert len(parts) == 6
    parts[1].write_bytes(parts[1].read_bytes()[:-50])
    parts[2].write_bytes(b"")
    _prepare(source, tmp_path / "out", max_rejected=0.1)
    assert len(_lines(tmp_path / "out/train.jsonl")) == 40


def test_a_killed_build_goes_on_and_leaves_no_process_behind(tmp_path):
    rows = 40_000
    source = _write(tmp_path / "rows.jsonl", [_row(number) for number in range(rows)])
    command = [sys.executable, "-m", "nemo_minordpo", "prepare", "hf", str(source), "--num-validation", "500"]
    with subprocess.Popen([*command, str(tmp_path / "out"), "--workers", "2"], stderr=subprocess.DEVNULL) as process:
        parts = tmp_path / ".out.parts"
        while len(list(parts.glob("*.npz"))) < 3:
            assert process.poll() is None
            time.sleep(0.005)
        children = _children(process.pid)
        assert len(children) >= 2
        process.send_signal(signal.SIGKILL)
    made = {path: path.stat().st_mtime_ns for path in parts.glob("*.npz")}
    assert 3 <= len(made) < rows // 1000
    deadline = time.monotonic() + 60
    while any(_runs(pid) for pid in children):
        assert time.monotonic() < deadline, "workers outlive the build"
        time.sleep(0.05)
    done = subprocess.run([*command, str(tmp_path / "out"), "--workers", "1"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "went on with an interrupted build" in done.stderr
    whole = subprocess.run([*command, str(tmp_path / "whole"), "--workers", "1"], capture_output=True, text=True)
    assert whole.returncode == 0, whole.stderr
    assert _bytes(tmp_path / "out") == _bytes(tmp_path / "whole")
    assert not parts.exists()


def _children(pid):
    with open(f"/proc/{pid}/task/{pid}/children") as children:
        return [int(child) for child in children.read().split()]


def _runs(pid):
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_second_build_of_one_output_is_refused(tmp_path):
    source = _write(tmp_path / "rows.jsonl", map(_row, range(3)))
    (tmp_path / ".out.parts").mkdir()
    with FileLock(tmp_path / ".out.parts/lock"), pytest.raises(ValueError, match="another process is building it"):
        _prepare(source, tmp_path / "out")
    assert _prepare(source, tmp_path / "out").counts["pairs"] == 3


def _make_or_die(path, rows):
    if path.name == "000004.npz":
        os._exit(1)
    return _real_make_in_worker(path, rows)


_real_make_in_worker = workers._make_in_worker


def test_a_dying_worker_is_told_and_what_is_made_is_kept(tmp_path, monkeypatch):
    source = _write(tmp_path / "rows.jsonl", map(_row, range(70)))
    monkeypatch.setattr(workers, "_make_in_worker", _make_or_die)
    with pytest.raises(ValueError, match="a worker process ended unexpectedly"):
        _prepare(source, tmp_path / "out", workers=2)
    assert not (tmp_path / "out").exists()
    assert _prepare(source, tmp_path / "out", workers=1).counts["pairs"] == 70


def test_what_is_there_is_replaced_only_on_demand_and_only_if_a_build_made_it(tmp_path):
    source = _write(tmp_path / "rows.jsonl", map(_row, range(5)))
    _prepare(source, tmp_path / "out", num_validation=2)
    before = _bytes(tmp_path / "out")
    with pytest.raises(ValueError, match="exists already"):
        _prepare(source, tmp_path / "out")
    assert _bytes(tmp_path / "out") == before
    _prepare(source, tmp_path / "out", overwrite=True)
    assert not (tmp_path / "out/validation.jsonl").exists()
    (tmp_path / "out/notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"what no preparation has made \(notes.txt\)"):
        _prepare(source, tmp_path / "out", overwrite=True)
    assert (tmp_path / "out/notes.txt").read_text() == "mine"
    with pytest.raises(ValueError, match="is a file"):
        _prepare(source, source, overwrite=True)


def test_the_output_may_be_the_present_folder_or_a_link(tmp_path, monkeypatch):
    source = _write(tmp_path / "rows.jsonl", map(_row, range(5)))
    (tmp_path / "here").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "there")
    (tmp_path / "there").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    _prepare(source, Path("."))
    for _ in range(2):
        _prepare(source, tmp_path / "link", overwrite=True)
    assert len(_lines(tmp_path / "here/train.jsonl")) == len(_lines(tmp_path / "there/train.jsonl")) == 5
    assert (tmp_path / "link").is_symlink()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["here", "link", "rows.jsonl", "there"]


def test_a_file_that_breaks_off_leaves_no_output(tmp_path):
    (tmp_path / "rows.json").write_text(json.dumps([_row(number) for number in range(30)])[:-20])
    with pytest.raises(ValueError, match=r"rows\.json: damaged at row 30"):
        _prepare(tmp_path / "rows.json", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"num_validation": -1}, "num_validation is -1"),
        ({"max_rejected": 1.5}, "max_rejected is 1.5"),
        ({"limit": 0}, "limit is 0"),
        ({"workers": 0}, "workers is 0"),
    ],
)
def test_options_out_of_range(options, reason):
    with pytest.raises(ValueError, match=reason):
        BuildOptions(**options)


def test_texts_that_tools_cut_are_rejected(tmp_path):
    rows = [_row(1), {**_row(2), "chosen": "a\0b"}, {**_row(3), "prompt": "\ud83d"}, {**_row(4), "rejected": " \n"}]
    _prepare(_write(tmp_path / "rows.jsonl", rows), tmp_path / "out", max_rejected=1)
    reasons = [row["reason"] for row in _lines(tmp_path / "out/rejected_rows.jsonl")]
    for reason, told in zip(("NUL character", "surrogate", "empty"), reasons, strict=True):
        assert reason in told


def test_training_accepts_every_line_and_statistics_are_those_of_the_pairs(mixed, tmp_path):
    _prepare(mixed, tmp_path / "out", num_validation=20, max_rejected=0.1)
    files = [tmp_path / "out" / f"{name}.jsonl" for name in ("train", "validation")]
    pairs = [PreferencePair.from_json(line) for file in files for line in file.read_text().splitlines()]
    told = json.loads((tmp_path / "out/statistics.json").read_text())
    lengths = [len(pair.prompt) for pair in pairs]
    assert told["prompt_characters"]["mean"] == pytest.approx(np.mean(lengths), abs=1e-6)
    assert told["prompt_characters"]["max"] == max(lengths)
    assert told["edit_distance"]["pairs"] == len(pairs)
    assert (tmp_path / "out/statistics.png").read_bytes().startswith(b"\x89PNG")
