"""LoRA in NeMo's terms: which layers can be adapted, where adapters are, and how a model config describes them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nemo_minordpo.errors import UserError

# `model.peft.lora_tuning.target_modules`: name -> the linear layers it stands for
LORA_TARGETS = {
    "attention_qkv": ("attention_qkv",),
    "attention_dense": ("attention_dense",),
    "mlp_fc1": ("mlp_fc1",),
    "mlp_fc2": ("mlp_fc2",),
    "attention": ("attention_qkv", "attention_dense"),
    "mlp": ("mlp_fc1", "mlp_fc2"),
    "all": ("attention_qkv", "attention_dense", "mlp_fc1", "mlp_fc2"),
}
# linear layer -> path of its adapter within a transformer layer
ADAPTER_PLACES = {
    "attention_qkv": "self_attention.adapter_layer.lora_kqv_adapter",
    "attention_dense": "self_attention.adapter_layer.lora_dense_attention_adapter",
    "mlp_fc1": "mlp.adapter_layer.lora_hto4h_adapter",
    "mlp_fc2": "mlp.adapter_layer.lora_4htoh_adapter",
}
# occurs in the names of NeMo's adapter tensors only
ADAPTER = ".adapter_layer."
DEFAULT_TARGETS, DEFAULT_RANK = ("attention_qkv",), 32
# further options of NeMo's LoRA, and the values that turn them off
_PLAIN = {"variant": "nemo", "weight_tying": False, "layer_selection": None}


@dataclass(frozen=True, kw_only=True)
class LoraFacts:
    """Adapters add ``alpha / rank * B A x``; `targets` are the adapted linear layers, in model order."""

    rank: int
    alpha: float
    dropout: float
    targets: tuple[str, ...]


def linear_layers(names: list[str]) -> tuple[str, ...]:
    """The linear layers that some names of LORA_TARGETS stand for, each once, in model order."""
    chosen = {layer for name in names for layer in LORA_TARGETS[name]}
    return tuple(layer for layer in ADAPTER_PLACES if layer in chosen)


def lora_facts(config: Mapping[str, Any], *, where: str) -> LoraFacts:
    """Read the description of adapters from their model config.

    Args:
        config: a `model_config.yaml`, as plain values.
        where: its name in error messages.

    Raises:
        UserError: it does not describe LoRA adapters, or not plain ones.
    """
    peft = config.get("peft") or {}
    settings = peft.get("lora_tuning")
    if peft.get("peft_scheme") != "lora" or not isinstance(settings, Mapping):
        raise UserError(f"{where}: its model config has no peft.lora_tuning section, which has the adapters' scale")
    for key, plain in _PLAIN.items():
        if settings.get(key, plain) not in (plain, None):
            raise UserError(f"{where}: peft.lora_tuning.{key}={settings[key]!r}: only plain LoRA is supported")
    rank, alpha = settings.get("adapter_dim"), settings.get("alpha")
    if not isinstance(rank, int):
        raise UserError(f"{where}: peft.lora_tuning.adapter_dim={rank!r}: the adapters' rank, an integer, expected")
    targets = settings.get("target_modules") or list(DEFAULT_TARGETS)
    unknown = [str(name) for name in targets if name not in LORA_TARGETS]
    if unknown:
        raise UserError(
            f"{where}: peft.lora_tuning.target_modules names {', '.join(unknown)}, which is not a known linear layer"
        )
    return LoraFacts(
        rank=rank,
        alpha=rank if alpha is None else alpha,
        dropout=settings.get("adapter_dropout") or 0.0,
        targets=linear_layers(targets),
    )


def peft_section(facts: LoraFacts, *, scheme: str = "lora") -> dict[str, Any]:
    """The `peft` section of a model config, with every key that NeMo reads without a default."""
    return {
        "peft_scheme": scheme,
        "restore_from_path": None,
        "lora_tuning": {
            "target_modules": list(facts.targets),
            "adapter_dim": facts.rank,
            "alpha": facts.alpha,
            "adapter_dropout": facts.dropout,
            # new adapters leave the model unchanged: the second matrix is zero
            "column_init_method": "xavier",
            "row_init_method": "zero",
            "layer_selection": None,
            "weight_tying": False,
        },
    }
