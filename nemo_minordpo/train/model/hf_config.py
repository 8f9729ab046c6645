"""A Hugging Face folder's `config.json` in NeMo's keys, for `host=bridge`.

Only what checks, plans and rates need: sizes and limits. Megatron-Bridge itself reads the architecture.
"""

from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from nemo_minordpo.checked_json import read_json_object
from nemo_minordpo.errors import UserError
from nemo_minordpo.hugging_face import find_weights

# by transformers' name: NeMo's
_SIZES = {
    "num_hidden_layers": "num_layers",
    "hidden_size": "hidden_size",
    "intermediate_size": "ffn_hidden_size",
    "num_attention_heads": "num_attention_heads",
    "max_position_embeddings": "max_position_embeddings",
    "vocab_size": "unpadded_vocab_size",
}
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")


def read_hf_config(path: Path, *, setting: str) -> DictConfig:
    """The model configuration of a Hugging Face folder.

    Args:
        path: the folder.
        setting: which names it, for messages.

    Raises:
        UserError: it is not a folder with config.json and weights, or sizes are missing.
    """
    if path.suffix == ".nemo":
        raise UserError(
            f"{setting}={path}: host=bridge starts from a Hugging Face folder; export this one with minordpo export-hf"
        )
    file = path / "config.json"
    if not file.is_file():
        raise UserError(f"{setting}={path}: host=bridge starts from a Hugging Face folder; {file} does not exist")
    find_weights(path)
    raw = read_json_object(file)
    sizes: dict[str, Any] = {ours: raw.get(theirs) for theirs, ours in _SIZES.items()}
    if lost := [theirs for theirs, ours in _SIZES.items() if not isinstance(sizes[ours], int)]:
        raise UserError(f"{file} has no integer {', '.join(lost)}: a text model with one stack of layers expected")
    heads = sizes["num_attention_heads"]
    experts = next((raw[key] for key in _EXPERTS if raw.get(key)), None)
    if experts:
        sizes["ffn_hidden_size"] = raw.get("moe_intermediate_size") or sizes["ffn_hidden_size"]
    return OmegaConf.create(
        {
            **sizes,
            "encoder_seq_length": sizes["max_position_embeddings"],
            "num_query_groups": raw.get("num_key_value_heads") or heads,
            "kv_channels": raw.get("head_dim") or sizes["hidden_size"] // heads,
            "activation": "fast-swiglu" if raw.get("hidden_act") == "silu" else "geglu",
            "position_embedding_type": "rope",
            "window_size": _window(raw),
            "num_moe_experts": experts,
            "moe_router_topk": raw.get("num_experts_per_tok"),
            "hidden_dropout": 0.0,
            "attention_dropout": raw.get("attention_dropout") or 0.0,
            "tokenizer": {"library": "huggingface", "type": str(path.absolute())},
        }
    )


def _window(raw: dict[str, Any]) -> list[int] | None:
    """The sliding window as NeMo writes it; models that have one in some layers name it, too."""
    window = raw.get("sliding_window") if raw.get("use_sliding_window", True) else None
    return [window, 0] if window else None
