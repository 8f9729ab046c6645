"""The shipped demo model: the properties that later stages rely on, apart from the quality of its answers."""

import json
import random
from itertools import islice
from pathlib import Path

import pytest
from safetensors import safe_open
from transformers import AutoTokenizer

from nemo_minordpo.core.gsm8k import PAPER_INSTRUCTION, plain_prompt, response_from_answer
from nemo_minordpo.prepare.arithmetic import arithmetic_problems

FOLDER = Path(__file__).parents[2] / "assets/demo-model"


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(FOLDER)


@pytest.fixture(scope="module")
def config():
    return json.loads((FOLDER / "config.json").read_text())


def test_prompt_and_response_never_share_a_token(tokenizer):
    for problem in islice(arithmetic_problems(99), 1000):
        prompt, response = plain_prompt(problem.question), response_from_answer(problem.answer)
        together = tokenizer.encode(prompt + response)
        assert together == tokenizer.encode(prompt) + tokenizer.encode(response)
        assert tokenizer.decode(together) == prompt + response


def test_any_text_survives_the_tokenizer(tokenizer):
    draw = random.Random(0)
    texts = ["a , b . don 't  x\n\n \t", "3.14 \u20ac \u2212 na\u00efve", "\r\n", " "]
    texts += ["".join(chr(draw.randrange(1, 0xD800)) for _ in range(20)) for _ in range(300)]
    assert [text for text in texts if tokenizer.decode(tokenizer.encode(text)) != text] == []


def test_words_and_digits_are_single_tokens(tokenizer):
    assert len(tokenizer.encode(PAPER_INSTRUCTION)) == 36
    assert tokenizer.convert_ids_to_tokens(tokenizer.encode("Mia buys 123 apples.")) == [
        "Mia", "\u0120buys", "\u0120", "1", "2", "3", "\u0120apples", ".",
    ]  # fmt: skip


def test_one_token_ends_and_pads_and_there_is_no_beginning_token(tokenizer, config):
    assert tokenizer.eos_token == tokenizer.pad_token == "<|endoftext|>"
    assert tokenizer.bos_token is None
    assert tokenizer.encode("<|endoftext|>") == [tokenizer.eos_token_id]
    assert config["eos_token_id"] == config["pad_token_id"] == tokenizer.eos_token_id
    assert config["vocab_size"] >= len(tokenizer)


def test_shapes_divide_by_two_and_weights_are_stored_as_the_config_says(config):
    even = ("num_hidden_layers", "num_attention_heads", "num_key_value_heads", "vocab_size")
    assert {name: config[name] % 2 for name in even} == dict.fromkeys(even, 0)
    assert config["hidden_size"] % 64 == config["intermediate_size"] % 64 == 0
    with safe_open(FOLDER / "model.safetensors", framework="pt") as weights:
        stored = {str(weights.get_slice(name).get_dtype()) for name in weights.keys()}  # noqa: SIM118  no iterator
        assert "lm_head.weight" not in weights.keys()  # noqa: SIM118  tied
    assert (config["torch_dtype"], stored) == ("bfloat16", {"BF16"})
    assert config["tie_word_embeddings"] is True


def test_the_folder_is_small():
    assert sum(file.stat().st_size for file in FOLDER.iterdir()) < 4_000_000
