"""Convert a GGUF file of a Llama or Qwen2 model to a Hugging Face folder: dequantised weights, rebuilt tokenizer."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nemo_minordpo.convert.facts import facts_from_config
from nemo_minordpo.convert.gguf_tokenizer import build_tokenizer
from nemo_minordpo.convert.hf_folder import HfWeights, write_weights
from nemo_minordpo.errors import UserError
from nemo_minordpo.files import publish, refuse_existing, sha256_of_file, staging_folder, write_json
from nemo_minordpo.records import Manifest
from nemo_minordpo.terminal import progress_bar


@dataclass(frozen=True, kw_only=True)
class _Architecture:
    model_class: str  # transformers' name
    pre_tokenizer: str  # the one that goes with it here
    interleaves_rotary_halves: bool  # llama.cpp reorders the rows of queries and keys of Llama, not of Qwen2


_ARCHITECTURES = {
    "llama": _Architecture(model_class="LlamaForCausalLM", pre_tokenizer="smollm", interleaves_rotary_halves=True),
    "qwen2": _Architecture(model_class="Qwen2ForCausalLM", pre_tokenizer="qwen2", interleaves_rotary_halves=False),
}
_OUTER = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_INNER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def gguf_to_hf(gguf: Path, output: Path, *, overwrite: bool = False) -> Manifest:
    """Convert a GGUF file of a Llama model with SmolLM's tokenizer, or of a Qwen2 or Qwen2.5 model.

    Args:
        gguf: the file.
        output: the folder to write.
        overwrite: replace an existing output.

    Returns:
        The manifest written to the folder.

    Raises:
        UserError: not a GGUF file, an unsupported architecture or tokenizer, or the output exists.
    """
    refuse_existing(output, overwrite=overwrite)
    reader = _open(gguf)
    fields = {key: field.contents() for key, field in reader.fields.items()}
    _require(fields, gguf)
    config = _config(fields, tied=all(tensor.name != "output.weight" for tensor in reader.tensors))
    with staging_folder(output) as folder:
        staged = folder / "hf"
        staged.mkdir()
        described = {_hf_name(t.name): torch.empty(*reversed(t.shape.tolist()), device="meta") for t in reader.tensors}
        num_bytes = write_weights(staged, described, _tensors(reader, config))
        try:
            build_tokenizer(fields).save_pretrained(staged)
        except UserError as error:
            raise UserError(f"{gguf}: {error}") from error
        write_json(staged / "config.json", config)
        tokens = {key: config[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
        write_json(staged / "generation_config.json", tokens)
        weights = HfWeights(staged, facts_from_config(config, where=str(gguf)))
        counts = {"hf_tensors": len(weights.dtypes), "bytes": num_bytes, "tokens": config["vocab_size"]}
        manifest = Manifest(stage="gguf-to-hf", inputs={str(gguf): sha256_of_file(gguf)}, counts=counts)
        manifest.write(staged)
        publish(staged, output)
    return manifest


def _open(gguf: Path) -> Any:
    from gguf import GGUFReader

    if not gguf.is_file():
        raise UserError(f"{gguf}: no such file")
    try:
        return GGUFReader(gguf)
    except (ValueError, IndexError) as error:
        raise UserError(f"{gguf}: damaged or not a GGUF file ({error})") from error


def _require(fields: dict[str, Any], gguf: Path) -> None:
    name = fields.get("general.architecture")
    if name not in _ARCHITECTURES:
        raise UserError(f"{gguf}: general.architecture={name!r}; only {_listed(_ARCHITECTURES)} can be converted")
    wanted = {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": _ARCHITECTURES[name].pre_tokenizer}
    for key, value in wanted.items():
        if fields.get(key) != value:
            raise UserError(f"{gguf}: {key}={fields.get(key)!r}; only {value!r} can be converted")
    for key in ("tokenizer.ggml.add_bos_token", f"{name}.rope.scaling.type"):
        if fields.get(key):
            raise UserError(f"{gguf}: {key}={fields[key]!r} cannot be converted")


def _listed(names: Iterable[str]) -> str:
    return " and ".join(map(repr, names))


def _config(fields: dict[str, Any], *, tied: bool) -> dict[str, Any]:
    """`config.json`. GGUF stores float32, where 1e-5 reads as 9.99999975e-6, so numbers are rounded to six digits."""
    name = fields["general.architecture"]
    hidden_size, num_heads = fields[f"{name}.embedding_length"], fields[f"{name}.attention.head_count"]
    return {
        "architectures": [_ARCHITECTURES[name].model_class],
        "model_type": name,
        "hidden_size": hidden_size,
        "intermediate_size": fields[f"{name}.feed_forward_length"],
        "num_hidden_layers": fields[f"{name}.block_count"],
        "num_attention_heads": num_heads,
        "num_key_value_heads": fields[f"{name}.attention.head_count_kv"],
        "head_dim": fields.get(f"{name}.rope.dimension_count", hidden_size // num_heads),
        "hidden_act": "silu",
        "max_position_embeddings": fields[f"{name}.context_length"],
        "rms_norm_eps": float(f"{fields[f'{name}.attention.layer_norm_rms_epsilon']:.6g}"),
        "rope_theta": float(f"{fields[f'{name}.rope.freq_base']:.6g}"),
        "tie_word_embeddings": tied,
        "vocab_size": len(fields["tokenizer.ggml.tokens"]),
        "bos_token_id": fields["tokenizer.ggml.bos_token_id"],
        "eos_token_id": fields["tokenizer.ggml.eos_token_id"],
        "pad_token_id": fields["tokenizer.ggml.padding_token_id"],
        "torch_dtype": "float32",
    }


def _tensors(reader: Any, config: dict[str, Any]) -> Iterator[tuple[str, Tensor]]:
    from gguf.quants import dequantize

    heads = {}  # of the projections whose rows are reordered
    if _ARCHITECTURES[config["model_type"]].interleaves_rotary_halves:
        heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    with progress_bar() as progress:
        for stored in progress.track(reader.tensors, description="dequantising tensors"):
            tensor = torch.from_numpy(dequantize(stored.data, stored.tensor_type).copy())
            kind = stored.name.split(".")[-2]
            yield _hf_name(stored.name), _halves_apart(tensor, heads[kind]) if kind in heads else tensor


def _hf_name(stored: str) -> str:
    if stored in _OUTER:
        return _OUTER[stored]
    _, layer, name, kind = stored.split(".")
    return f"model.layers.{layer}.{_INNER[name]}.{kind}"


def _halves_apart(weight: Tensor, num_heads: int) -> Tensor:
    """Undo GGUF's row order within a head: GGUF interleaves the rotary halves, Hugging Face does not."""
    return weight.reshape(num_heads, -1, 2, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)
