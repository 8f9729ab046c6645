"""The tasks for lm-evaluation-harness give the same answers and scores as `minordpo evaluate`."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from nemo_minordpo.core.gsm8k import ANSWER_RULES

ROOT = Path(__file__).parent.parent.parent
TASKS = ROOT / "nemo_minordpo/evaluate/lm_eval_tasks"
TEMPLATE = (
    "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)


def run(*arguments, check=True, **environment):
    return subprocess.run(
        [sys.executable, "-m", *map(str, arguments)],
        env={**os.environ, "HF_HUB_OFFLINE": "1", **environment},
        capture_output=True,
        text=True,
        check=check,
        timeout=600,
    )


def harness(model, questions, output, task, *arguments):
    """{metric: mean}, and the texts in the order of the questions."""
    run(
        "lm_eval", "run", "--model", "hf", "--model_args", f"pretrained={model},dtype=float32", "--device", "cpu",
        "--include_path", TASKS, "--tasks", task, "--batch_size", "50", "--gen_kwargs", "max_gen_toks=96",
        "--log_samples", "--output_path", output, *arguments,
        MINORDPO_QUESTIONS=str(questions),
    )  # fmt: skip
    (results,) = output.rglob("results_*.json")
    (samples,) = output.rglob("samples_*.jsonl")
    rows = sorted(map(json.loads, samples.read_text().splitlines()), key=lambda row: row["doc_id"])
    summary = json.loads(results.read_text())
    assert summary["versions"][task] == ANSWER_RULES
    return summary["results"][task], [row["resps"][0][0] for row in rows]


@pytest.mark.parametrize(("form", "number"), [("plain", 100), ("chat", 10)])
def test_the_same_answers_and_scores(tmp_path, form, number):
    model = tmp_path / "model"
    shutil.copytree(ROOT / "assets/demo-model", model)
    if form == "chat":
        config = json.loads((model / "tokenizer_config.json").read_text())
        (model / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": TEMPLATE}))
    run("nemo_minordpo", "prepare", "arithmetic", tmp_path / "problems", "--num-train", "1", "--num-test", number)
    questions = tmp_path / "problems/test.jsonl"
    run(
        "nemo_minordpo", "evaluate", model, questions, tmp_path / "ours", "--batch-size", "50",
        "--max-new-tokens", "96", "--template", form,
    )  # fmt: skip
    ours = json.loads((tmp_path / "ours/score.json").read_text())
    predictions = map(json.loads, (tmp_path / "ours/predictions.jsonl").read_text().splitlines())
    task = "gsm8k_minordpo" + ("" if form == "chat" else "_plain")
    more = ["--apply_chat_template"] if form == "chat" else []
    theirs, texts = harness(model, questions, tmp_path / "theirs", task, *more)
    assert texts == [prediction["output"] for prediction in predictions]
    for metric, name in (
        ("strict", "strict_accuracy"), ("flexible", "flexible_accuracy"), ("no_answer", "no_answer_rate"),
    ):  # fmt: skip
        assert theirs[f"{metric},none"] == pytest.approx(ours[name], abs=1e-12)
    if form == "plain":
        assert 0.2 < ours["strict_accuracy"] < 0.8  # at 0 or 1, different rules could agree by accident


def test_missing_questions_are_reported(tmp_path):
    done = run(
        "lm_eval", "run", "--model", "dummy", "--include_path", TASKS, "--tasks", "gsm8k_minordpo", check=False,
        MINORDPO_QUESTIONS="",
    )  # fmt: skip
    assert done.returncode != 0
    assert "MINORDPO_QUESTIONS is not set: set it to GSM8K's test.jsonl" in done.stdout + done.stderr
