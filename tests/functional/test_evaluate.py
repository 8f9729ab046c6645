"""`minordpo evaluate` as a user calls it, on a model whose answers are known."""

import itertools
import json
import os
import subprocess
import sys

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AddedToken, PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from nemo_minordpo.core.gsm8k import plain_prompt

ANSWERS = ["So the answer is:", " 7"]
CHAT = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def _answer_seven(folder):
    """A model that answers "So the answer is: 7" to every question, and then ends the turn.

    Its layers add nothing, so the next token depends only on the last one: embeddings are unit vectors, and the output
    layer maps each to its successor.
    """
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(letters)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|endoftext|>", chat_template=CHAT)
    tokenizer.add_tokens(ANSWERS)
    tokenizer.add_tokens([AddedToken(token, special=True) for token in ("<|im_start|>", "<|im_end|>")])
    tokenizer.save_pretrained(folder)

    width = -(-len(tokenizer) // 4) * 4
    config = Qwen2Config(
        vocab_size=len(tokenizer), hidden_size=width, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=2048, eos_token_id=tokenizer.eos_token_id, bos_token_id=None,
        tie_word_embeddings=False,
    )  # fmt: skip
    model = Qwen2ForCausalLM(config)
    chain = tokenizer.convert_tokens_to_ids(["\u010a", *ANSWERS, "<|im_end|>"])  # byte-level BPE writes \n as U+010A
    with torch.no_grad():
        model.model.layers[0].self_attn.o_proj.weight.zero_()
        model.model.layers[0].mlp.down_proj.weight.zero_()
        model.model.embed_tokens.weight.copy_(torch.eye(len(tokenizer), width))
        model.lm_head.weight.zero_()
        for token, successor in itertools.pairwise(chain):
            model.lm_head.weight[successor, token] = 1.0
    model.save_pretrained(folder)


def _evaluate(*arguments, **environment):
    command = [sys.executable, "-m", "nemo_minordpo", "evaluate", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("seven")
    _answer_seven(folder / "model")
    golds = [7, 7, 8, 7]
    rows = [{"question": f"Is it {gold}?", "answer": f"It is.\n#### {gold}"} for gold in golds]
    (folder / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_score_of_a_model_that_always_answers_seven(folder, tmp_path):
    out = tmp_path / "out"
    done = _evaluate(folder / "model", folder / "questions.jsonl", out, "--batch-size", 3)
    assert done.returncode == 0, done.stderr
    score = json.loads((out / "score.json").read_text())
    assert score["num_questions"] == 4
    assert (score["strict_accuracy"], score["flexible_accuracy"]) == (0.75, 0.75)
    assert score["strict_interval_95"] == pytest.approx([0.3006, 0.9544], abs=1e-4)
    rates = [score[name] for name in ("degenerate_rate", "no_answer_rate", "unfinished_rate", "mean_tokens")]
    assert rates == [0, 0, 0, 2]
    predictions = [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]
    assert [(row["index"], row["gold"], row["strict"]) for row in predictions] == [
        (0, "7", "7"), (1, "7", "7"), (2, "8", "7"), (3, "7", "7"),
    ]  # fmt: skip
    assert {row["output"] for row in predictions} == {"So the answer is: 7"}

    again = _evaluate(folder / "model", folder / "questions.jsonl", out)
    assert again.returncode == 2
    assert "exists already" in again.stderr
    assert "Traceback" not in again.stderr


def test_template_and_token_limit_from_the_command_line(folder, tmp_path):
    common = [folder / "model", folder / "questions.jsonl"]
    options = ["--max-new-tokens", 2, "--limit", 1]
    done = _evaluate(*common, tmp_path / "out", "--template", "plain", *options)
    assert done.returncode == 0, done.stderr
    settings = json.loads((tmp_path / "out/manifest.json").read_text())["settings"]
    assert settings["first_prompt"] == plain_prompt("Is it 7?")
    # The limit leaves no room for the end of the turn.
    score = json.loads((tmp_path / "out/score.json").read_text())
    assert (score["num_questions"], score["unfinished_rate"], score["strict_accuracy"]) == (1, 1.0, 1.0)


def test_samples_from_the_command_line(folder, tmp_path):
    options = ["--samples", 4, "--temperature", 0.05, "--seed", 1]
    done = _evaluate(folder / "model", folder / "questions.jsonl", tmp_path / "out", *options)
    assert done.returncode == 0, done.stderr
    assert "4 questions: strict 75.0%" in done.stdout
    assert "maj@4 75.0%, pass@4 75.0%" in done.stdout
    rows = [json.loads(line) for line in (tmp_path / "out/predictions.jsonl").read_text().splitlines()]
    assert [(row["index"], row["sample"]) for row in rows] == [(i, s) for i in range(4) for s in range(4)]
    refused = _evaluate(folder / "model", folder / "questions.jsonl", tmp_path / "no", "--samples", 4)
    assert refused.returncode == 2
    assert "samples is 4, but temperature 0 is greedy" in refused.stderr


def test_a_folder_that_is_not_a_model_is_refused(folder, tmp_path):
    done = _evaluate(tmp_path, folder / "questions.jsonl", tmp_path / "out")
    assert done.returncode == 2
    assert "no config.json" in done.stderr
    assert "Traceback" not in done.stderr
