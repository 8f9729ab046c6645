"""LoRA adapters that training starts from: what they are is read from them, and what is set otherwise is refused."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from nemo_minordpo.config import LoraSection, TrainConfig
from nemo_minordpo.config.lora import ADAPTER_PLACES, LoraFacts, linear_layers, lora_facts
from nemo_minordpo.core.flops import ModelSize
from nemo_minordpo.errors import UserError
from nemo_minordpo.train.model.nemo_file import NemoFile, read_nemo

SETTING = "model.peft.restore_from_path"
_LAYERS = "decoder.layers."
_IN, _OUT = ".linear_in.weight", ".linear_out.weight"
# in what models can differ whose adapters have the same shapes
_ARCHITECTURE = (
    "num_layers", "hidden_size", "ffn_hidden_size", "num_attention_heads", "num_query_groups", "kv_channels",
    "normalization", "layernorm_epsilon", "bias", "qkv_bias", "qk_layernorm", "activation", "position_embedding_type",
    "rotary_percentage", "rotary_base", "seq_len_interpolation_factor", "scale_positional_embedding",
    "unpadded_vocab_size",
)  # fmt: skip


def read_starting_adapters(config: TrainConfig, model: Mapping[str, Any], size: ModelSize) -> LoraFacts:
    """What the adapters are that a run starts from.

    Args:
        config: the run's, which names some.
        model: the configuration of the model that they are put on.
        size: of that model.

    Raises:
        UserError: they cannot be read, are made for another model or saved for another layout, or settings
            contradict them.
    """
    assert config.model.peft.restore_from_path is not None
    path = Path(config.model.peft.restore_from_path)
    if (path / "adapter_config.json").is_file():
        raise UserError(
            f"{SETTING}={path} is a PEFT folder; training starts from a .nemo of it: "
            f"minordpo import-hf {path} adapters.nemo"
        )
    file = read_nemo(path, setting=SETTING)
    plain: Any = OmegaConf.to_container(file.config, resolve=True)
    if not file.adapters and not (file.has_rank_files and not file.tensors):
        raise UserError(
            f"{SETTING}={path} has no adapters in it; a model to start from is named in "
            "pretrained_checkpoint.restore_from_path"
        )
    facts = lora_facts(plain, where=str(path))
    _require_same_model(
        path, plain, {key: model.get(key) for key in _ARCHITECTURE if key not in config.checkpoint_overrides}
    )
    if file.adapters:
        facts = _as_stored(facts, file, size)
    else:
        _require_layout(config, path, saved=plain)
    _require_agreement(config.model.peft.lora_tuning, facts, path)
    return facts


def in_words(model_config: Any, path: Path) -> str:
    """What a run starts from and compares itself with, for people.

    Args:
        model_config: as model_config.build_model_config made it.
        path: of the adapters.
    """
    lora = model_config.peft.lora_tuning
    dropout = f", dropout {lora.adapter_dropout:g}" if lora.adapter_dropout else ""
    return (
        f"training starts from the adapters of {path} (rank {lora.adapter_dim}, alpha {lora.alpha:g}{dropout}, on "
        f"{', '.join(lora.target_modules)}); the reference is the model with these adapters"
    )


def _require_same_model(path: Path, trained_on: Mapping[str, Any], model: Mapping[str, Any]) -> None:
    """What only one of the two model configs spells out is not compared."""
    pairs = {key: (trained_on.get(key), value) for key, value in model.items()}
    other = [f"{key} {of_adapters} (here {here})" for key, (of_adapters, here) in pairs.items()
             if None not in (of_adapters, here) and of_adapters != here]  # fmt: skip
    if other:
        raise UserError(
            f"{SETTING}={path}: these adapters were trained on another model than "
            f"pretrained_checkpoint.restore_from_path names: {', '.join(other)}"
        )


def _as_stored(facts: LoraFacts, file: NemoFile, size: ModelSize) -> LoraFacts:
    """Facts of which the targets are those that there are adapters of; shapes are held against the model's."""
    expected = {
        f"{_LAYERS}{ADAPTER_PLACES[name]}{part}": (size.num_layers, *shape)
        for name in ADAPTER_PLACES
        for part, shape in _shapes(name, rank=facts.rank, size=size).items()
    }
    unknown = sorted(file.adapters.keys() - expected.keys())
    if unknown:
        raise UserError(f"{file.path}: {unknown[0]}: only plain LoRA is supported")
    targets = linear_layers(
        [name for name, place in ADAPTER_PLACES.items() if f"{_LAYERS}{place}{_IN}" in file.adapters]
    )
    for name in targets:
        for part in (_IN, _OUT):
            tensor = f"{_LAYERS}{ADAPTER_PLACES[name]}{part}"
            found = file.adapters.get(tensor)
            if found != expected[tensor]:
                raise UserError(
                    f"{SETTING}={file.path}: {tensor} has shape {found}, adapters of rank {facts.rank} for this model "
                    f"have {expected[tensor]} (layers first): were they trained on another model?"
                )
    return LoraFacts(rank=facts.rank, alpha=facts.alpha, dropout=facts.dropout, targets=targets)


def _shapes(name: str, *, rank: int, size: ModelSize) -> dict[str, tuple[int, int]]:
    """{A: [rank, inputs], B: [outputs, rank]} of a linear layer."""
    attended = size.num_heads * size.head_size
    inputs, outputs = {
        "attention_qkv": (size.hidden_size, attended + 2 * size.num_query_groups * size.head_size),
        "attention_dense": (attended, size.hidden_size),
        "mlp_fc1": (size.hidden_size, size.ffn_hidden_size * (2 if size.gated else 1)),
        "mlp_fc2": (size.ffn_hidden_size, size.hidden_size),
    }[name]
    return {_IN: (rank, inputs), _OUT: (outputs, rank)}


def _require_layout(config: TrainConfig, path: Path, *, saved: dict[str, Any]) -> None:
    """NeMo writes adapters one file per rank, which only ranks of the same layout can read."""
    sizes = ("tensor_model_parallel_size", "pipeline_model_parallel_size")
    other = [f"model.{key}={saved.get(key) or 1}" for key in sizes if (saved.get(key) or 1) != vars(config.model)[key]]
    if other:
        raise UserError(
            f"{SETTING}={path} holds one file per rank, for {' '.join(other)}: set that, or make it a .nemo for any "
            f"layout: minordpo export-hf {path} peft --adapters peft --base BASE.nemo, then "
            "minordpo import-hf peft adapters.nemo"
        )


def _require_agreement(given: LoraSection, facts: LoraFacts, path: Path) -> None:
    problems = [
        f"model.peft.lora_tuning.{key}={value}, but the adapters of {SETTING}={path} have {found}: leave it out"
        for key, value, found, agrees in (
            ("adapter_dim", given.adapter_dim, facts.rank, given.adapter_dim == facts.rank),
            ("alpha", given.alpha, facts.alpha, given.alpha == facts.alpha),
            (
                "target_modules",
                given.target_modules,
                list(facts.targets),
                linear_layers(given.target_modules or []) == facts.targets,
            ),
        )
        if value is not None and not agrees
    ]
    if problems:
        raise UserError("\n".join(problems))
