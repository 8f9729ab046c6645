"""A tiny Qwen2, Qwen3 or Llama model with its own tokenizer, as a Hugging Face folder; and pairs for it."""

import json
import random
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

SIZES = {
    "vocab_size": 403, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 512,
}  # fmt: skip


def write_tokenizer(folder: Path) -> None:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([f"the answer is {number}\n" for number in range(1000)], trainer)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|endoftext|>", pad_token="<|endoftext|>"
    ).save_pretrained(folder)


def write_model(
    folder: Path, *, tied: bool = False, seed: int = 0, qwen3: bool = False, llama: bool = False, biases: float = 0.1,
    **sizes: int,
) -> None:  # fmt: skip
    """With all that conversions get wrong: grouped-query attention, biases not 0, norms not 1, an odd vocabulary size.

    Qwen3 has query and key norms instead of biases, and a head size that does not follow from the hidden size.
    """
    # by name: a GPU machine may have transformers before 4.51, which has no Qwen3
    config_class = getattr(transformers, f"{'Qwen3' if qwen3 else 'Llama' if llama else 'Qwen2'}Config")
    head_size = {"head_dim": 24} if qwen3 else {}
    write_folder(folder, config_class(tie_word_embeddings=tied, **head_size, **{**SIZES, **sizes}), seed, biases)


def write_folder(folder: Path, config: Any, seed: int = 0, biases: float = 0.1, norms: float = 0.0) -> None:
    """A model of any architecture with random weights.

    biases, norms: standard deviation of biases, and of what norms have in addition to their initial weights.
    """
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=biases)
        if name.endswith(("q_norm.weight", "k_norm.weight")):
            torch.nn.init.normal_(parameter, mean=1.0, std=0.3)
        elif name.endswith("norm.weight") and norms:
            parameter.data += norms * torch.randn_like(parameter)
    model.save_pretrained(folder)
    write_tokenizer(folder)


def write_pairs(path: Path, *, count: int, seed: int, longer_by: int = 0) -> None:
    """Pairs of different lengths; 22 pairs make two whole batches of 8 and a partial one.

    longer_by: words of three tokens each that prompts and both responses have in addition.
    """
    draw = random.Random(seed)
    rows = []
    for _ in range(count):
        a, b = draw.randint(1, 99), draw.randint(1, 99)
        filler, more = "so " * draw.randint(0, 6), "so " * longer_by
        rows.append(
            {
                "prompt": f"What {more}is {a} plus {b}?\n",
                "chosen_response": f"{a} + {b} = {a + b}\n{more}{filler}the answer is {a + b}",
                "rejected_response": f"{a} + {b} = {a + b + 1}\n{more}the answer is {a + b}",
                "chosen_reward": draw.random(),
                "rejected_reward": -draw.random(),
            }
        )
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
