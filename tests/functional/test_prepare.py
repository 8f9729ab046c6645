"""The `minordpo prepare` commands as a user calls them."""

import json
import subprocess
import sys

from nemo_minordpo.core.gsm8k import plain_prompt
from nemo_minordpo.records import PreferencePair
from tests.unit.prepare.templates import QWEN, save_tokenizer

ANSWER = "He had 3+4 = <<3+4=7>>7 nuts.\nHe ate 7-2 = <<7-2=5>>5 more.\n#### 5"


def _prepare(*arguments):
    command = [sys.executable, "-m", "nemo_minordpo", "prepare", "gsm8k", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


def test_pairs_from_a_file_are_not_replaced_by_default(tmp_path):
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


def _minordpo(*arguments):
    command = [sys.executable, "-m", "nemo_minordpo", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


def _write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_every_kind_of_data_set_is_prepared_and_previewed(tmp_path):
    tokenizer = save_tokenizer(tmp_path / "tokenizer", QWEN)
    chat = ["--template", "chat", "--tokenizer", tokenizer, "--system", "Be brief."]
    shot = {
        "prompt": "Q: Two?\nA: 2\n\nQ: 1 + 1?\nA:",
        "chosen": "1 + 1 = 2.\nThe answer is: 2",
        "rejected": "1 + 1 = 3.",
    }
    few_shot = _write(tmp_path / "few.jsonl", shot)
    qa = _write(tmp_path / "qa.jsonl", {"query": "1 + 1?", "response": shot["chosen"], "original_question": "2?"})
    arc = {"question": "Gas?", "choices": {"text": ["air", "iron"], "label": ["A", "B"]}, "answerKey": "A"}
    said = ("Blue.", "Red.", "I do not know.")
    commands = {
        "joined": ["metamath", few_shot, "--metamathqa", qa, "--workers", 1],
        "marked": ["metamath", few_shot, "--marker", "Q:"],
        "kept": ["metamath", few_shot, "--marker", "None:", "--keep-few-shot", "--max-rejected", 1],
        "hf": [
            "hf",
            _write(tmp_path / "a.jsonl", {"q": "Sky?", "chosen": "Blue.", "rejected": "Red."}),
            "--prompt-column",
            "q",
        ],
        "choices": ["choices", _write(tmp_path / "arc.jsonl", arc), "--one-per-question"],
        "answers": [
            "answers",
            _write(
                tmp_path / "b.jsonl", *({"prompt": "Sky?", "output": one, "correct": one == "Blue."} for one in said)
            ),
            "--matching",
            "farthest",
        ],
    }
    prompts = {}
    for name, (kind, source, *options) in commands.items():
        done = _minordpo("prepare", kind, source, tmp_path / name, *options, *(chat if name != "kept" else []))
        assert done.returncode == 0, done.stderr
        assert "1 rows: 1 pairs (1 train, 0 validation), 0 rejected" in done.stdout
        prompts[name] = json.loads((tmp_path / name / "train.jsonl").read_text())["prompt"]
    begin, end = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n"
    question = plain_prompt("1 + 1?").strip()
    assert prompts == {
        "joined": f"{begin}{question}{end}", "marked": f"{begin}{question}{end}", "kept": shot["prompt"],
        "hf": f"{begin}Sky?{end}", "choices": f"{begin}Gas?{end}", "answers": f"{begin}Sky?{end}",
    }  # fmt: skip
    done = _minordpo("preview", tmp_path / "choices/train.jsonl", "--tokenizer", tokenizer)
    assert done.returncode == 0, done.stderr
    assert "ends with EOS '<|im_end|>'\nair<|im_end|>" in done.stdout


def test_a_call_that_cannot_find_questions_is_refused(tmp_path):
    source = _write(tmp_path / "few.jsonl", {"prompt": "Q: A?\nA:", "chosen": "C", "rejected": "R"})
    done = _minordpo("prepare", "metamath", source, tmp_path / "out")
    assert done.returncode == 2
    assert "--metamathqa" in done.stderr
    assert "Q: A?" in done.stderr
    assert "Traceback" not in done.stderr
