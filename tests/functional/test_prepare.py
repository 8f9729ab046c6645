"""`minordpo prepare gsm8k` as a user calls it."""

import json
import subprocess
import sys

from nemo_minordpo.core.gsm8k import plain_prompt
from nemo_minordpo.records import PreferencePair

ANSWER = "He had 3+4 = <<3+4=7>>7 nuts.\nHe ate 7-2 = <<7-2=5>>5 more.\n#### 5"


def _prepare(*arguments):
    command = [sys.executable, "-m", "nemo_minordpo", "prepare", "gsm8k", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


def test_pairs_from_a_file_and_refusal_to_replace_them(tmp_path):
    source, out = tmp_path / "rows.jsonl", tmp_path / "out"
    rows = [{"question": f"Question {number}?", "answer": ANSWER} for number in range(5)]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows) + "{broken\n")

    done = _prepare(source, out, "--num-validation", 2, "--seed", 7, "--max-rejected", 0.5)
    assert done.returncode == 0, done.stderr
    assert "6 rows: 5 pairs (3 train, 2 validation), 1 rejected" in done.stdout
    pairs = [
        PreferencePair.from_json(line)
        for name in ("train.jsonl", "validation.jsonl")
        for line in (out / name).read_text().splitlines()
    ]
    assert {pair.prompt for pair in pairs} == {plain_prompt(row["question"]) for row in rows}
    for pair in pairs:
        assert pair.chosen_response == "He had 3+4 = 7 nuts.\nHe ate 7-2 = 5 more.\nSo the answer is: 5"
        wrong = pair.rejected_response.removeprefix("He had 3+4 = ").split(" ")[0]
        assert wrong in ("5", "6", "8", "9")
        assert pair.rejected_response == pair.chosen_response.replace("= 7", f"= {wrong}")
    (rejected,) = map(json.loads, (out / "rejected_rows.jsonl").read_text().splitlines())
    assert rejected["source"] == f"{source}:6"

    before = {path: path.read_bytes() for path in out.iterdir()}
    again = _prepare(source, out)
    assert again.returncode == 2
    assert "exists already" in again.stderr
    assert "Traceback" not in again.stderr
    assert {path: path.read_bytes() for path in out.iterdir()} == before
    assert _prepare(source, out, "--overwrite", "--max-rejected", 0.5).returncode == 0
    assert len((out / "train.jsonl").read_text().splitlines()) == 5


def test_a_source_without_a_usable_row_is_refused(tmp_path):
    source = tmp_path / "rows.jsonl"
    source.write_text('{"question": "Q?", "answer": "#### 5"}\n')
    done = _prepare(source, tmp_path / "out")
    assert done.returncode == 2
    assert f"{source}:1: no calculator mark" in done.stderr
    assert not (tmp_path / "out").exists()
