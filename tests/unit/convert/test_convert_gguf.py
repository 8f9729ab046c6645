"""Convert a GGUF file written here, with weights in GGUF's row order, to a Hugging Face folder."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGUFWriter
from safetensors.torch import load_file
from tiny_hf import config_of, tensors_of
from torch import Tensor
from transformers import AutoTokenizer

from nemo_minordpo.convert.gguf_to_hf import gguf_to_hf
from nemo_minordpo.convert.hf_to_nemo import import_hf

TEMPLATE = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
TOKENS = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    *"0123456789",
    "\u0120",
    "a",
    "b",
    "ab",
    "12",
    "\u01201",
    "\u010a",
]
NAMES = {
    "attn_norm": "input_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj", "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}  # fmt: skip
CONFIG = {model_type: config_of(model_type, vocab_size=len(TOKENS)) for model_type in ("llama", "qwen2")}


def pairs_together(weight: Tensor, heads: int) -> Tensor:
    """llama.cpp's row order: first of the first half, first of the second half, and so on."""
    d, rows = weight.shape[0] // heads, []
    for head in range(heads):
        for i in range(d // 2):
            rows += [weight[head * d + i], weight[head * d + d // 2 + i]]
    return torch.stack(rows)


def write_gguf(path: Path, model_type: str = "llama", *, tied: bool = False, **changes: Any) -> dict[str, Tensor]:
    """Write a tiny model; return its Hugging Face tensors."""
    tokens = changes.get("tokens", TOKENS)
    tensors = tensors_of({**CONFIG[model_type], "tie_word_embeddings": tied, "vocab_size": len(tokens)})
    writer = GGUFWriter(path, changes.get("architecture", model_type))
    writer.add_block_count(3)
    writer.add_context_length(64)
    writer.add_embedding_length(24)
    writer.add_feed_forward_length(20)
    writer.add_head_count(6)
    writer.add_head_count_kv(2)
    if model_type == "llama":  # llama.cpp leaves it out for Qwen2
        writer.add_rope_dimension_count(4)
    writer.add_rope_freq_base(20000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(changes.get("pre", {"llama": "smollm"}.get(model_type, model_type)))
    writer.add_token_list(tokens)
    writer.add_token_types(changes.get("kinds", [3, 3, 3] + [1] * (len(TOKENS) - 3)))
    writer.add_token_merges(changes.get("merges", ["a b", "1 2", "\u0120 1"]))
    special = changes.get("special", 0)
    writer.add_bos_token_id(special + 1)
    writer.add_eos_token_id(special + 2)
    writer.add_unk_token_id(special)
    writer.add_pad_token_id(special + 2)
    writer.add_add_bos_token(changes.get("add_bos", False))
    writer.add_chat_template(TEMPLATE)
    for name, source in (("token_embd", "embed_tokens"), ("output_norm", "norm")):
        writer.add_tensor(f"{name}.weight", tensors[f"model.{source}.weight"].numpy())
    if not tied:
        writer.add_tensor("output.weight", tensors["lm_head.weight"].numpy())
    for layer in range(3):
        for name, source in NAMES.items():
            weight = tensors[f"model.layers.{layer}.{source}.weight"]
            if model_type == "llama" and name in ("attn_q", "attn_k"):
                weight = pairs_together(weight, 6 if name == "attn_q" else 2)
            writer.add_tensor(f"blk.{layer}.{name}.weight", np.ascontiguousarray(weight.numpy()))
            if (bias := f"model.layers.{layer}.{source}.bias") in tensors:
                writer.add_tensor(f"blk.{layer}.{name}.bias", tensors[bias].numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tensors


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("model_type", ["llama", "qwen2"])
def test_weights_and_config(tmp_path: Path, model_type: str, tied: bool) -> None:
    tokenizer = OF_QWEN2 if model_type == "qwen2" else {}
    wanted = write_gguf(tmp_path / "tiny.gguf", model_type, tied=tied, **tokenizer)
    manifest = gguf_to_hf(tmp_path / "tiny.gguf", tmp_path / "hf")
    found = load_file(tmp_path / "hf" / "model.safetensors")
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert torch.equal(found[name], tensor), name
    assert manifest.counts["hf_tensors"] == len(wanted)
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert config["rms_norm_eps"] == 1e-5  # not float32's 9.99999975e-6
    vocab_size = len(tokenizer.get("tokens", TOKENS))
    wanted_config = {**CONFIG[model_type], "tie_word_embeddings": tied, "vocab_size": vocab_size}
    assert {key: config[key] for key in wanted_config} == wanted_config
    import_hf(tmp_path / "hf", tmp_path / "base.nemo")


def test_tokenizer_splits_digits_ends_turns_and_adds_nothing(tmp_path: Path) -> None:
    write_gguf(tmp_path / "tiny.gguf")
    gguf_to_hf(tmp_path / "tiny.gguf", tmp_path / "hf")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "hf")
    assert tokenizer.tokenize("ab 12") == ["ab", "\u0120", "1", "2"]
    assert tokenizer("ab<|im_end|>").data == {"input_ids": [TOKENS.index("ab"), 2], "attention_mask": [1, 1]}
    assert tokenizer.decode(tokenizer("ab 12").input_ids) == "ab 12"
    special = (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token, tokenizer.unk_token)
    assert special == ("<|im_start|>", "<|im_end|>", "<|im_end|>", "<|endoftext|>")
    turn = tokenizer.apply_chat_template([{"role": "a", "content": "b"}], tokenize=False)
    assert turn == "<|im_start|>a\nb<|im_end|>\n"


WORDS = [*TOKENS[3:], "\u00c3", "\u00a9", "\u00c3\u00a9"]
ADDED = [*TOKENS[:3], "<tool_call>"]
OF_QWEN2: dict[str, Any] = {
    "tokens": [*WORDS, *ADDED, "[PAD20]", "[PAD21]"],
    "kinds": [*[1] * len(WORDS), 3, 3, 3, 4, 5, 5],
    "merges": ["a b", "1 2", "\u0120 1", "\u00c3 \u00a9"],
    "special": len(WORDS),
}


def test_tokenizer_of_qwen2(tmp_path: Path) -> None:
    """Its published rules: NFC, single digits, no BOS; a turn ends with <|im_end|>."""
    write_gguf(tmp_path / "tiny.gguf", "qwen2", **OF_QWEN2)
    gguf_to_hf(tmp_path / "tiny.gguf", tmp_path / "hf")
    tokenizer, ids = AutoTokenizer.from_pretrained(tmp_path / "hf"), OF_QWEN2["tokens"].index
    assert tokenizer.tokenize("ab12") == ["ab", "1", "2"]
    assert tokenizer.tokenize("e\u0301") == tokenizer.tokenize("\u00e9") == ["\u00c3\u00a9"]
    assert tokenizer("ab<|im_end|>").input_ids == [ids("ab"), ids("<|im_end|>")]
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == (None, "<|im_end|>", "<|im_end|>")
    written = tokenizer("<|im_start|>ab<tool_call>").input_ids
    assert written == [ids("<|im_start|>"), ids("ab"), ids("<tool_call>")]
    assert tokenizer.decode(written, skip_special_tokens=True) == "ab<tool_call>"  # part of an answer, so it stays
    assert len(tokenizer) == len(WORDS) + len(ADDED)  # what only fills the embedding up has no text
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert config["vocab_size"] == len(OF_QWEN2["tokens"])


def test_added_tokens_among_the_words_are_refused(tmp_path: Path) -> None:
    write_gguf(tmp_path / "tiny.gguf", "qwen2")
    with pytest.raises(ValueError, match=r"tiny\.gguf: added tokens must come after the words .*<\|endoftext\|>"):
        gguf_to_hf(tmp_path / "tiny.gguf", tmp_path / "hf")
    assert not (tmp_path / "hf").exists()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"architecture": "gemma"}, "general.architecture='gemma'"),
        ({"pre": "llama-bpe"}, "tokenizer.ggml.pre='llama-bpe'"),
        ({"add_bos": True}, "add_bos_token=True"),
    ],
)
def test_what_cannot_be_converted_is_refused(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    write_gguf(tmp_path / "tiny.gguf", **changes)
    with pytest.raises(ValueError, match=r"tiny\.gguf: ") as error:
        gguf_to_hf(tmp_path / "tiny.gguf", tmp_path / "hf")
    assert said in str(error.value)
    assert not (tmp_path / "hf").exists()


def test_bad_files(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such file"):
        gguf_to_hf(tmp_path / "none.gguf", tmp_path / "hf")
    (tmp_path / "bad.gguf").write_bytes(b"nothing of the kind")
    with pytest.raises(ValueError, match=r"bad\.gguf: damaged or not a GGUF file"):
        gguf_to_hf(tmp_path / "bad.gguf", tmp_path / "hf")
    write_gguf(tmp_path / "cut.gguf")
    content = (tmp_path / "cut.gguf").read_bytes()
    for length in (40, len(content) // 2, len(content) - 200):
        (tmp_path / "cut.gguf").write_bytes(content[:length])
        with pytest.raises(ValueError, match=r"cut\.gguf: damaged or not a GGUF file"):
            gguf_to_hf(tmp_path / "cut.gguf", tmp_path / "hf")
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "mine").touch()
    with pytest.raises(ValueError, match="hf exists already"):
        gguf_to_hf(tmp_path / "cut.gguf", tmp_path / "hf")
