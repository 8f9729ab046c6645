"""Tiny Hugging Face folders, written without transformers: names and shapes are spelled out independently here."""

import json
from pathlib import Path
from typing import Any

import torch
import transformers.models.auto.tokenization_auto  # noqa: F401  loaded once, so that no import needs a process
from safetensors.torch import save_file
from torch import Tensor

TOKENIZER_FILES = {
    "tokenizer.json": b"""{"version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
        "normalizer": null, "pre_tokenizer": {"type": "Whitespace"}, "post_processor": null, "decoder": null,\r
        "model": {"type": "WordLevel", "vocab": {"caf\xc3\xa9": 0, "<unk>": 1, "</s>": 2}, "unk_token": "<unk>"}}""",
    "tokenizer_config.json": b'{"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</s>"}',
    "special_tokens_map.json": b"{}",
    "chat_template.jinja": b"{% for m in messages %}{{ m.content }}{% endfor %}\n",
    "generation_config.json": b'{"eos_token_id": 2}',
}


ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}


def config_of(model_type: str = "llama", **changes: Any) -> dict[str, Any]:
    """A valid config.json of transformers 4; a change to None removes the key."""
    values = {
        "architectures": [ARCHITECTURES[model_type]],
        "model_type": model_type,
        "hidden_size": 24,
        "intermediate_size": 20,
        "num_hidden_layers": 3,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "head_dim": 4,
        "vocab_size": 131,
        "max_position_embeddings": 64,
        "rms_norm_eps": 1e-5,
        "rope_theta": 20000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
    }
    return {key: value for key, value in {**values, **changes}.items() if value is not None}


def tensors_of(config: dict[str, Any], *, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Random weights with transformers' names."""
    h, f, n, vocab = (config[k] for k in ("hidden_size", "intermediate_size", "num_attention_heads", "vocab_size"))
    d, g = config.get("head_dim", h // n), config["num_key_value_heads"]
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocab, h), "model.norm.weight": (h,)}
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (vocab, h)
    for i in range(config["num_hidden_layers"]):
        layer = f"model.layers.{i}"
        shapes |= {
            f"{layer}.input_layernorm.weight": (h,),
            f"{layer}.self_attn.q_proj.weight": (n * d, h),
            f"{layer}.self_attn.k_proj.weight": (g * d, h),
            f"{layer}.self_attn.v_proj.weight": (g * d, h),
            f"{layer}.self_attn.o_proj.weight": (h, n * d),
            f"{layer}.post_attention_layernorm.weight": (h,),
            f"{layer}.mlp.gate_proj.weight": (f, h),
            f"{layer}.mlp.up_proj.weight": (f, h),
            f"{layer}.mlp.down_proj.weight": (h, f),
        }
        if config["model_type"] == "qwen2":
            shapes |= {
                f"{layer}.self_attn.q_proj.bias": (n * d,),
                f"{layer}.self_attn.k_proj.bias": (g * d,),
                f"{layer}.self_attn.v_proj.bias": (g * d,),
            }
        if config["model_type"] == "qwen3":
            shapes |= {f"{layer}.self_attn.q_norm.weight": (d,), f"{layer}.self_attn.k_norm.weight": (d,)}
    generator = torch.Generator().manual_seed(5)
    return {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in shapes.items()}


def write_hf(folder: Path, model_type: str = "llama", *, dtype: torch.dtype = torch.float32, **changes: Any) -> Path:
    """Write config, weights and tokenizer files; return the folder."""
    folder.mkdir()
    config = config_of(model_type, **changes)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors_of(config, dtype=dtype), folder / "model.safetensors", metadata={"format": "pt"})
    for file, content in TOKENIZER_FILES.items():
        (folder / file).write_bytes(content)
    return folder
