"""LoRA adapters to start from: their description is read from their files, and contradicting settings are rejected."""

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
# properties in which models can differ even if their adapters have the same shapes
_ARCHITECTURE = (
    "num_layers", "hidden_size", "ffn_hidden_size", "num_attention_heads", "num_query_groups", "kv_channels",
    "normalization", "layernorm_epsilon", "bias", "qkv_bias", "qk_layernorm", "activation", "position_embedding_type",
    "rotary_percentage", "rotary_base", "seq_len_interpolation_factor", "scale_positional_embedding",
    "unpadded_vocab_size",
)  # fmt: skip


def read_starting_adapters(config: TrainConfig, model: Mapping[str, Any], size: ModelSize) -> LoraFacts:
    """Read the description of the adapters that a run starts from.

    Args:
        config: the run's configuration, with adapters to start from.
        model: the configuration of the model that gets the adapters.
        size: the sizes of that model.

    Raises:
        UserError: they cannot be read, are for another model, were saved for another layout, or contradict the
            settings.
    """
    assert config.model.peft.restore_from_path is not None
    path = Path(config.model.peft.restore_from_path)
    if (path / "adapter_config.json").is_file():
        raise UserError(
            f"{SETTING}={path} is a PEFT folder; convert it to a .nemo first: minordpo import-hf {path} adapters.nemo"
        )
    file = read_nemo(path, setting=SETTING)
    plain: Any = OmegaConf.to_container(file.config, resolve=True)
    if not file.adapters and not (file.has_rank_files and not file.tensors):
        raise UserError(
            f"{SETTING}={path} contains no adapters; give a model to start from in "
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
    """A sentence that describes the adapters a run starts from, and its reference.

    Args:
        model_config: from model_config.build_model_config.
        path: path of the adapters.
    """
    lora = model_config.peft.lora_tuning
    dropout = f", dropout {lora.adapter_dropout:g}" if lora.adapter_dropout else ""
    return (
        f"training starts from the adapters of {path} (rank {lora.adapter_dim}, alpha {lora.alpha:g}{dropout}, on "
        f"{', '.join(lora.target_modules)}); the reference is the model with these adapters"
    )


def _require_same_model(path: Path, trained_on: Mapping[str, Any], model: Mapping[str, Any]) -> None:
    """Compare the two models by the keys that both configs have."""
    pairs = {key: (trained_on.get(key), value) for key, value in model.items()}
    other = [f"{key} {of_adapters} (here {here})" for key, (of_adapters, here) in pairs.items()
             if None not in (of_adapters, here) and of_adapters != here]  # fmt: skip
    if other:
        raise UserError(
            f"{SETTING}={path}: these adapters were trained on a different model from "
            f"pretrained_checkpoint.restore_from_path: {', '.join(other)}"
        )


def _as_stored(facts: LoraFacts, file: NemoFile, size: ModelSize) -> LoraFacts:
    """The facts with the targets that the file has adapters for, after checking their shapes against the model."""
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
            shape = file.adapters.get(tensor)
            if shape != expected[tensor]:
                raise UserError(
                    f"{SETTING}={file.path}: {tensor} has shape {shape}, but adapters of rank {facts.rank} for this "
                    f"model have {expected[tensor]} (layers first): were they trained on another model?"
                )
    return LoraFacts(rank=facts.rank, alpha=facts.alpha, dropout=facts.dropout, targets=targets)


def _shapes(name: str, *, rank: int, size: ModelSize) -> dict[str, tuple[int, int]]:
    """{A: [rank, inputs], B: [outputs, rank]} for a linear layer."""
    attended = size.num_heads * size.head_size
    inputs, outputs = {
        "attention_qkv": (size.hidden_size, attended + 2 * size.num_query_groups * size.head_size),
        "attention_dense": (attended, size.hidden_size),
        "mlp_fc1": (size.hidden_size, size.ffn_hidden_size * (2 if size.gated else 1)),
        "mlp_fc2": (size.ffn_hidden_size, size.hidden_size),
    }[name]
    return {_IN: (rank, inputs), _OUT: (outputs, rank)}


def _require_layout(config: TrainConfig, path: Path, *, saved: dict[str, Any]) -> None:
    """NeMo writes adapters as one file per rank, which can only be read at the same layout."""
    sizes = ("tensor_model_parallel_size", "pipeline_model_parallel_size")
    other = [f"model.{key}={saved.get(key) or 1}" for key in sizes if (saved.get(key) or 1) != vars(config.model)[key]]
    if other:
        raise UserError(
            f"{SETTING}={path} contains one file per rank, for {' '.join(other)}: set that, or convert it to a .nemo "
            f"for any layout: minordpo export-hf {path} peft --adapters peft --base BASE.nemo, then "
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
