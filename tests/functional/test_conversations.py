"""The commands of docs/conversations.md, as they are written there, with a tiny Qwen3 and a template like Qwen3's."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from nemo_minordpo.pairs.tokens import load_arrays
from tests.tiny import write_model
from tests.unit.prepare.templates import QWEN_3

ROOT = Path(__file__).parent.parent.parent


def commands_of(heading):
    """The commands of a section, as lists of words."""
    text = (ROOT / "docs/conversations.md").read_text(encoding="utf-8")
    section = text.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    lines = re.search(r"```\n(.*?)```", section, re.DOTALL)[1].replace("\\\n", " ").strip().splitlines()
    return [shlex.split(line) for line in lines]


def run_section(heading, folder):
    (folder / "examples").symlink_to(ROOT / "examples")
    for name in ("base", "qwen3"):
        write_model(folder / "hf" / name, qwen3=True, max_position_embeddings=2048)
        tokenizer = AutoTokenizer.from_pretrained(folder / "hf" / name)
        tokenizer.chat_template = QWEN_3
        tokenizer.save_pretrained(folder / "hf" / name)
    outputs = []
    for program, *words in commands_of(heading):
        assert program == "minordpo"
        done = subprocess.run(
            [sys.executable, "-m", "nemo_minordpo", *words], cwd=folder, capture_output=True, text=True, timeout=400,
            check=False, env=None,
        )  # fmt: skip
        assert done.returncode == 0, (words, done.stderr[-3000:])
        outputs.append(done.stdout)
    return outputs


def texts_of(folder, run, pair):
    """(prompt, chosen response) of a pair as trained, decoded."""
    tokenizer = AutoTokenizer.from_pretrained(folder / "hf/base")
    arrays = load_arrays(folder / run / "data/train")
    prompt, sequence = int(arrays.prompt_lengths[pair]), arrays.sequence(pair, rejected=False)
    return tokenizer.decode(sequence[:prompt]), tokenizer.decode(sequence[prompt:])


@pytest.fixture(scope="module")
def conversations(tmp_path_factory):
    folder = tmp_path_factory.mktemp("conversations")
    return folder, run_section("A conversation of several turns", folder)


def test_only_the_last_assistant_turn_is_trained(conversations):
    folder, _ = conversations
    rows = [json.loads(line) for line in (ROOT / "examples/multi_turn.jsonl").read_text().splitlines()]
    by_last_turn = {row["prompt"][-1]["content"]: row for row in rows}
    for pair in range(8):
        prompt, response = texts_of(folder, "runs/conversations", pair)
        (row,) = [row for turn, row in by_last_turn.items() if f"<|im_start|>user\n{turn}<|im_end|>" in prompt]
        assert all(message["content"] in prompt for message in row["prompt"])
        assert prompt.endswith("<|im_start|>assistant\n")
        assert response == row["chosen"][0]["content"] + "<|endoftext|>"


def test_the_trained_model_prefers_what_it_was_trained_on(conversations):
    folder, outputs = conversations
    score = json.loads((folder / "scores/pair_score.json").read_text())
    assert score["num_pairs"] == 2
    assert "Answer briefly." in outputs[1]  # the preview
    lines = [json.loads(line) for line in (folder / "runs/conversations/metrics.jsonl").read_text().splitlines()]
    margins = [line["values"]["rewards/margin"] for line in lines if line["split"] == "train"]
    assert margins[-1] > margins[0] == pytest.approx(0, abs=1e-3)


def test_thoughts_are_part_of_the_response(tmp_path):
    run_section("Thinking", tmp_path)
    prompt, response = texts_of(tmp_path, "runs/thinking", 0)
    assert "think" not in prompt
    assert response.startswith("<think>\n")
    assert "</think>\n\nSo the answer is: " in response
    answers = (tmp_path / "evaluation/predictions.jsonl").read_text().splitlines()
    assert len(answers) == 4
    settings = json.loads((tmp_path / "evaluation/manifest.json").read_text())["settings"]
    assert settings["template_options"] == {"enable_thinking": True}
