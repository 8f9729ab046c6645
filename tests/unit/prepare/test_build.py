"""The build that all data sets share: order, workers, duplicates, splits, refusals, interruptions and output files."""

import itertools
import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock

from nemo_minordpo.prepare import build as build_module
from nemo_minordpo.prepare import data_set, workers
from nemo_minordpo.prepare.build import BuildOptions, build
from nemo_minordpo.prepare.chat import Prompting
from nemo_minordpo.prepare.preference import PreferenceRecipe, prepare_preference
from nemo_minordpo.prepare.rows import LocalFile
from nemo_minordpo.prepare.sources import HubSet
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
    """Everything a build wrote except the time, the command and the commit, which may differ."""
    found = {path.name: path.read_bytes() for path in folder.iterdir()}
    manifest = json.loads(found.pop("manifest.json"))
    del manifest["created"], manifest["command"], manifest["commit"]
    return found, manifest


@pytest.fixture
def mixed(tmp_path):
    """Good rows, broken rows, duplicates, and repeated questions."""
    rows = [_row(number, question=f"Question {number % 23}?" if number % 3 else None) for number in range(90)]
    rows[10], rows[40], rows[41] = "{broken", {"prompt": "P", "chosen": "same", "rejected": "same"}, "[]"
    return _write(tmp_path / "rows.jsonl", [*rows, rows[0], rows[0], rows[5]])


def test_every_row_is_a_pair_or_a_rejected_row_in_order(mixed, tmp_path):
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
    assert rejected[-1]["reason"] == f"duplicate: same prompt and responses as {mixed}:6"
    assert [row["reason"] for row in rejected[-3:-1]] == [f"duplicate: same prompt and responses as {mixed}:1"] * 2
    assert manifest.unread == {"id": 90}  # the rows that gave a pair, including duplicates
    assert Manifest.read(tmp_path / "out") == manifest
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "rows.jsonl"]


def test_output_does_not_depend_on_the_number_of_workers(mixed, tmp_path):
    for number in (1, 2, 5):
        _prepare(mixed, tmp_path / f"out{number}", num_validation=20, max_rejected=0.1, workers=number)
    assert _bytes(tmp_path / "out1") == _bytes(tmp_path / "out2") == _bytes(tmp_path / "out5")
    assert len(_bytes(tmp_path / "out1")[0]) == 5


def test_few_chunks_are_in_flight(tmp_path):
    source = LocalFile(_write(tmp_path / "rows.jsonl", map(_row, range(40))))
    begun = []
    chunks = (begun.append(row.number) or [row] for row in source.rows())
    with closing(workers.made_in_order(chunks, recipe=PreferenceRecipe(), scratch=tmp_path, workers=2)) as made:
        for number, chunk in enumerate(made, start=1):
            assert b"rows.jsonl:%d" % number in chunk.path.read_bytes()
            assert len(begun) <= number + 3
    assert number == len(begun) == 40


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
    assert "25 validation pairs were requested" in capsys.readouterr().out
    for number in (9, 40):
        with pytest.raises(ValueError, match="a question stays on one side"):
            _prepare(source, tmp_path / "other", num_validation=number)


def test_one_pair_per_question(mixed, tmp_path):
    manifest = _prepare(mixed, tmp_path / "out", one_per_question=True, max_rejected=0.1)
    prompts = [row["prompt"] for row in _lines(tmp_path / "out/train.jsonl")]
    assert len(prompts) == len(set(prompts)) == manifest.counts["pairs"]
    assert manifest.counts["repeated_questions"] == 0
    again = [row for row in _lines(tmp_path / "out/rejected_rows.jsonl") if "another pair" in row["reason"]]
    assert len(again) == manifest.rejected["another pair for the same question"] == 87 - len(prompts)
    assert again[0]["reason"].endswith("is kept")
    assert manifest.counts["rows"] == manifest.counts["pairs"] + manifest.counts["rejected"]


def test_too_many_rejected_rows_are_refused_with_reasons(tmp_path):
    rows = [_row(number) for number in range(50)]
    rows[3] = rows[30] = {"prompt": "P", "chosen": 3, "rejected": "R"}
    rows[20], rows[40] = "{", rows[0]
    source = _write(tmp_path / "rows.jsonl", rows)
    with pytest.raises(
        ValueError, match=r"3 of 50 rows \(6.0%\) cannot be used, more than --max-rejected 0.05"
    ) as refusal:
        _prepare(source, tmp_path / "out", max_rejected=0.05)
    first, second, third = str(refusal.value).splitlines()[1:4]
    assert first == f"  2 x {source}:4: chosen must be a string or messages: found int"
    assert second.startswith(f"  1 x {source}:21: invalid JSON")
    assert third == f"all rejected rows: {tmp_path}/.out.partial/rejected_rows.jsonl"
    rejected = _lines(tmp_path / ".out.partial/rejected_rows.jsonl")
    assert [row["source"] for row in rejected] == [f"{source}:{number}" for number in (4, 21, 31)]
    assert sorted(path.name for path in (tmp_path / ".out.partial").iterdir()) == ["lock", "rejected_rows.jsonl"]
    assert not (tmp_path / "out").exists()
    counts = _prepare(source, tmp_path / "out", max_rejected=0.06).counts  # the duplicate does not count
    assert (counts["pairs"], counts["rejected"]) == (46, 4)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "rows.jsonl"]


# Time zones in which it is never the same day.
_DAY, _ANOTHER_DAY = "Pacific/Kiritimati", "Etc/GMT+12"


def _dates(folder):
    return {re.search("Today Date: (.*)", row["prompt"])[1] for row in _lines(folder / "train.jsonl")}


def test_a_build_that_runs_past_midnight_has_the_date_of_its_start(tmp_path, move_to, monkeypatch, capsys):
    hf = save_tokenizer(tmp_path / "hf", LLAMA_3_2, eos="<|eot_id|>")
    chat = Prompting(template="chat", tokenizer=hf)
    source = _write(tmp_path / "rows.jsonl", map(_row, range(20)))

    def prepare(name, prompting=chat):
        return prepare_preference([str(source)], tmp_path / name, prompting=prompting)

    monkeypatch.setattr(PreferenceRecipe, "begin", lambda recipe, scratch, sources: move_to(_ANOTHER_DAY) or {})
    move_to(_DAY)
    manifest = prepare("out")
    first = re.search(r"prints the date.*(\d{4}-\d\d-\d\d)", capsys.readouterr().err)[1]
    assert manifest.settings["date"] == first
    assert len(_dates(tmp_path / "out")) == 1

    # Controls: started on the other day, the date differs; with the first date as a setting, the bytes are the same.
    assert prepare("other").settings["date"] != first
    assert _dates(tmp_path / "other") != _dates(tmp_path / "out")
    prepare("again", replace(chat, date=first))
    assert _bytes(tmp_path / "again") == _bytes(tmp_path / "out")


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


def _killed_at(call, name, *arguments, **options):
    """Run `_prepare` in a process that is killed at the given call of the function `name`."""
    module, function = name.rsplit(".", 1)
    real, calls = getattr(sys.modules[module], function), itertools.count(1)

    def killed(*given, **more):
        if next(calls) == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*given, **more)

    def prepare():
        setattr(sys.modules[module], function, killed)
        _prepare(*arguments, workers=1, **options)

    process = multiprocessing.get_context("fork").Process(target=prepare)
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL


_ROWS_HALF_WRITTEN = (3, "nemo_minordpo.prepare.workers.make_chunk")
_FILES_HALF_WRITTEN = (2, "nemo_minordpo.prepare.data_set.rejection_line")
_NO_MANIFEST = (1, "nemo_minordpo.prepare.data_set.draw_histograms")
_NOT_RENAMED = (1, "nemo_minordpo.prepare.build.publish")


@pytest.mark.parametrize("place", [_ROWS_HALF_WRITTEN, _FILES_HALF_WRITTEN, _NO_MANIFEST, _NOT_RENAMED])
def test_a_killed_build_leaves_the_output_intact_and_the_next_one_cleans_up(mixed, tmp_path, place):
    options = {"num_validation": 20, "max_rejected": 0.1}
    _killed_at(*place, mixed, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()
    assert (tmp_path / ".out.partial").exists()
    _prepare(mixed, tmp_path / "out", **options)
    before = _bytes(tmp_path / "out")
    _prepare(mixed, tmp_path / "whole", **options)
    assert before == _bytes(tmp_path / "whole")

    _killed_at(*place, mixed, tmp_path / "out", seed=2, overwrite=True, **options)
    assert _bytes(tmp_path / "out") == before
    _prepare(mixed, tmp_path / "out", seed=2, overwrite=True, **options)
    assert _bytes(tmp_path / "out") != before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "rows.jsonl", "whole"]


def test_a_build_killed_while_replacing_another_loses_nothing(mixed, tmp_path):
    options = {"num_validation": 20, "max_rejected": 0.1}
    _prepare(mixed, tmp_path / "out", **options)
    before = _bytes(tmp_path / "out")
    _killed_at(2, "os.rename", mixed, tmp_path / "out", overwrite=True, **options)
    assert not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match="exists already"):
        _prepare(mixed, tmp_path / "out", **options)
    assert _bytes(tmp_path / "out") == before
    assert not (tmp_path / ".out.partial").exists()


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_a_stopped_build_leaves_nothing(mixed, tmp_path, monkeypatch, error):
    def stopped(*given, **options):
        raise error

    monkeypatch.setattr(data_set, "draw_histograms", stopped)
    with pytest.raises(error):
        _prepare(mixed, tmp_path / "out", max_rejected=0.1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rows.jsonl"]


def test_workers_exit_when_the_build_is_killed(tmp_path):
    source = _write(tmp_path / "rows.jsonl", map(_row, range(40_000)))
    command = [sys.executable, "-m", "nemo_minordpo", "prepare", "hf", str(source), str(tmp_path / "out")]
    with subprocess.Popen([*command, "--workers", "2"], stderr=subprocess.DEVNULL) as process:
        while not list((tmp_path / ".out.partial").glob("rows-*")):
            assert process.poll() is None
            time.sleep(0.005)
        children = _children(process.pid)
        assert len(children) >= 2
        process.send_signal(signal.SIGKILL)
    assert not (tmp_path / "out").exists()
    deadline = time.monotonic() + 60
    while any(_runs(pid) for pid in children):
        assert time.monotonic() < deadline, "workers outlive the build"
        time.sleep(0.05)


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
    (tmp_path / ".out.partial").mkdir()
    with FileLock(tmp_path / ".out.partial/lock"), pytest.raises(ValueError, match="another process is building it"):
        _prepare(source, tmp_path / "out")
    assert _prepare(source, tmp_path / "out").counts["pairs"] == 3


def _make_or_die(path, rows):
    if rows[0].number > 28:
        os._exit(1)
    return _real_make_in_worker(path, rows)


_real_make_in_worker = workers._make_in_worker


def test_a_dying_worker_is_reported(tmp_path, monkeypatch):
    source = _write(tmp_path / "rows.jsonl", map(_row, range(70)))
    monkeypatch.setattr(workers, "_make_in_worker", _make_or_die)
    with pytest.raises(ValueError, match="a worker process ended unexpectedly"):
        _prepare(source, tmp_path / "out", workers=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rows.jsonl"]


def test_an_output_is_replaced_only_on_request_and_only_if_a_build_wrote_it(tmp_path):
    source = _write(tmp_path / "rows.jsonl", map(_row, range(5)))
    _prepare(source, tmp_path / "out", num_validation=2)
    before = _bytes(tmp_path / "out")
    with pytest.raises(ValueError, match="exists already"):
        _prepare(source, tmp_path / "out")
    assert _bytes(tmp_path / "out") == before
    _prepare(source, tmp_path / "out", overwrite=True)
    assert not (tmp_path / "out/validation.jsonl").exists()
    (tmp_path / "out/notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"did not write \(notes.txt\)"):
        _prepare(source, tmp_path / "out", overwrite=True)
    assert (tmp_path / "out/notes.txt").read_text() == "mine"
    with pytest.raises(ValueError, match="is a file"):
        _prepare(source, source, overwrite=True)


def test_the_output_may_be_the_current_folder_or_a_link(tmp_path, monkeypatch):
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


def test_a_truncated_file_leaves_no_output(tmp_path):
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


def test_unusable_texts_are_rejected(tmp_path):
    rows = [_row(1), {**_row(2), "chosen": "a\0b"}, {**_row(3), "prompt": "\ud83d"}, {**_row(4), "rejected": " \n"}]
    _prepare(_write(tmp_path / "rows.jsonl", rows), tmp_path / "out", max_rejected=1)
    reasons = [row["reason"] for row in _lines(tmp_path / "out/rejected_rows.jsonl")]
    for part, reason in zip(("NUL character", "surrogate", "empty"), reasons, strict=True):
        assert part in reason


def test_training_accepts_every_line_and_statistics_match_the_pairs(mixed, tmp_path):
    _prepare(mixed, tmp_path / "out", num_validation=20, max_rejected=0.1)
    files = [tmp_path / "out" / f"{name}.jsonl" for name in ("train", "validation")]
    pairs = [PreferencePair.from_json(line) for file in files for line in file.read_text().splitlines()]
    statistics = json.loads((tmp_path / "out/statistics.json").read_text())
    lengths = [len(pair.prompt) for pair in pairs]
    assert statistics["prompt_characters"]["mean"] == pytest.approx(np.mean(lengths), abs=1e-6)
    assert statistics["prompt_characters"]["max"] == max(lengths)
    assert statistics["edit_distance"]["pairs"] == len(pairs)
    assert (tmp_path / "out/statistics.png").read_bytes().startswith(b"\x89PNG")


def test_the_manifest_tells_sources_from_other_inputs(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    hub = HubSet(str(tmp_path / "owner/name"), None, "train")  # a folder laid out like a data set on the hub
    (tmp_path / "owner/name/data").mkdir(parents=True)
    for path in (tmp_path / "owner/name/data/train.jsonl", tmp_path / "mine.jsonl"):
        _write(path, [_row(number, question=f"{path.parent.name} {number}") for number in range(3)])
    save_tokenizer(tmp_path / "tokenizer", QWEN_3)
    recipe = PreferenceRecipe(prompting=Prompting(template="chat", tokenizer=tmp_path / "tokenizer"))
    manifest = build(recipe, [hub, LocalFile(tmp_path / "mine.jsonl")], tmp_path / "pairs", BuildOptions())
    assert manifest.roles == {"sources": [hub.name, str(tmp_path / "mine.jsonl")], "hub": [hub.name]}
    assert set(manifest.roles["sources"]) < manifest.inputs.keys()
