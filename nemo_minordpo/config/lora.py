"""LoRA in NeMo's words: what can be adapted, where its adapters lie, and what a model config says of them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nemo_minordpo.errors import UserError

# `model.peft.lora_tuning.target_modules`: a name -> the linear layers that it stands for
LORA_TARGETS = {
    "attention_qkv": ("attention_qkv",),
    "attention_dense": ("attention_dense",),
    "mlp_fc1": ("mlp_fc1",),
    "mlp_fc2": ("mlp_fc2",),
    "attention": ("attention_qkv", "attention_dense"),
    "mlp": ("mlp_fc1", "mlp_fc2"),
    "all": ("attention_qkv", "attention_dense", "mlp_fc1", "mlp_fc2"),
}
# linear layer -> where its adapter lies in a layer of the model
ADAPTER_PLACES = {
    "attention_qkv": "self_attention.adapter_layer.lora_kqv_adapter",
    "attention_dense": "self_attention.adapter_layer.lora_dense_attention_adapter",
    "mlp_fc1": "mlp.adapter_layer.lora_hto4h_adapter",
    "mlp_fc2": "mlp.adapter_layer.lora_4htoh_adapter",
}
# in the name of every tensor of NeMo's adapters, and of no other
ADAPTER = ".adapter_layer."
DEFAULT_TARGETS, DEFAULT_RANK = ("attention_qkv",), 32
# what NeMo's LoRA can do beside, and the value under which it is plain
_PLAIN = {"variant": "nemo", "weight_tying": False, "layer_selection": None}


@dataclass(frozen=True, kw_only=True)
class LoraFacts:
    """Adapters add ``alpha / rank * B A x``; `targets` are the linear layers that have some, in the model's order."""

    rank: int
    alpha: float
    dropout: float
    targets: tuple[str, ...]


def linear_layers(names: list[str]) -> tuple[str, ...]:
    """What names of LORA_TARGETS stand for together, each linear layer once, in the model's order."""
    chosen = {layer for name in names for layer in LORA_TARGETS[name]}
    return tuple(layer for layer in ADAPTER_PLACES if layer in chosen)


def lora_facts(config: Mapping[str, Any], *, where: str) -> LoraFacts:
    """What a model config says of the adapters that it belongs to.

    Args:
        config: a `model_config.yaml`, as plain values.
        where: names it, for the error.

    Raises:
        UserError: it says nothing of LoRA, or the adapters are of a kind other than plain LoRA.
    """
    peft = config.get("peft") or {}
    settings = peft.get("lora_tuning")
    if peft.get("peft_scheme") != "lora" or not isinstance(settings, Mapping):
        raise UserError(f"{where}: its model config has no peft.lora_tuning, which says how adapters are scaled")
    for key, plain in _PLAIN.items():
        if settings.get(key, plain) not in (plain, None):
            raise UserError(f"{where}: peft.lora_tuning.{key}={settings[key]!r}: only plain LoRA can be read")
    rank, alpha = settings.get("adapter_dim"), settings.get("alpha")
    if not isinstance(rank, int):
        raise UserError(f"{where}: peft.lora_tuning.adapter_dim={rank!r}: the rank of the adapters was expected")
    targets = settings.get("target_modules") or list(DEFAULT_TARGETS)
    unknown = [str(name) for name in targets if name not in LORA_TARGETS]
    if unknown:
        raise UserError(
            f"{where}: peft.lora_tuning.target_modules names {', '.join(unknown)}, which is no linear layer"
        )
    return LoraFacts(
        rank=rank,
        alpha=rank if alpha is None else alpha,
        dropout=settings.get("adapter_dropout") or 0.0,
        targets=linear_layers(targets),
    )


def peft_section(facts: LoraFacts, *, scheme: str = "lora") -> dict[str, Any]:
    """What a model config says of adapters: `peft` of NeMo, with every key that NeMo reads without a default."""
    return {
        "peft_scheme": scheme,
        "restore_from_path": None,
        "lora_tuning": {
            "target_modules": list(facts.targets),
            "adapter_dim": facts.rank,
            "alpha": facts.alpha,
            "adapter_dropout": facts.dropout,
            # new adapters change nothing: the second of the two matrices is zero
            "column_init_method": "xavier",
            "row_init_method": "zero",
            "layer_selection": None,
            "weight_tying": False,
        },
    }
