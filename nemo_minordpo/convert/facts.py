"""A Hugging Face model's facts from its raw ``config.json``; models that Megatron cannot represent are rejected here.

The raw file does not depend on the installed transformers: transformers 5 writes ``rope_parameters`` and ``dtype``,
transformers 4 ``rope_theta``, ``rope_scaling`` and ``torch_dtype``. Both are accepted.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemo_minordpo.checked_json import read_json_object
from nemo_minordpo.errors import UserError

# NeMo does no padding of its own once the vocabulary is written, and tensor parallelism must divide it evenly:
# 128 allows every power of two up to 128 ranks.
VOCAB_MULTIPLE = 128

# NeMo hard-codes these four under `scale_positional_embedding`, so it cannot express any other llama3 scaling.
LLAMA31_ROPE = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}

_BIASES = "the mapping does not support biases in this layer"
_WHOLE_HEADS = "rotary embeddings must rotate whole heads"
_WHOLE_CONTEXT = "every layer must see the whole context"
_EXPERTS = "mixtures of experts are not supported"
# key, the only value that can be converted (also the default if the key is missing), and why
_ONLY = (
    ("attention_bias", False, _BIASES),
    ("mlp_bias", False, _BIASES),
    ("hidden_act", "silu", "Megatron's fast-swiglu is silu"),
    ("partial_rotary_factor", 1.0, _WHOLE_HEADS),
    ("rope_interleaved", False, "rotary halves of a head must not be interleaved"),
    ("use_sliding_window", False, _WHOLE_CONTEXT),
    ("num_experts", 0, _EXPERTS),
    ("num_local_experts", 0, _EXPERTS),
    ("n_routed_experts", 0, _EXPERTS),
)
_MISSING = object()


@dataclass(frozen=True, kw_only=True)
class Family:
    """The parts of the architecture that a `model_type` implies without stating them in its config."""

    architecture: str
    qkv_bias: bool = False
    qk_norm: bool = False  # RMSNorm on each head's queries and keys, before rotation
    # transformers' defaults for missing keys
    kv_heads_default: int | None = None  # None = as many as attention heads
    head_dim_default: int | None = None  # None = hidden_size / num_attention_heads
    window_default: int | None = None  # None = the family has no sliding window by default


FAMILIES = {
    "llama": Family(architecture="LlamaForCausalLM"),
    "mistral": Family(architecture="MistralForCausalLM", kv_heads_default=8, window_default=4096),
    "qwen2": Family(architecture="Qwen2ForCausalLM", qkv_bias=True, kv_heads_default=32),
    "qwen3": Family(architecture="Qwen3ForCausalLM", qk_norm=True, kv_heads_default=32, head_dim_default=128),
}


@dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """Everything that determines a model's names, shapes and arithmetic, independent of either side's spelling."""

    model_type: str  # a key of FAMILIES
    num_layers: int
    hidden_size: int
    ffn_hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int  # as in Hugging Face, without padding
    max_positions: int
    norm_epsilon: float
    rope_base: float
    rope_linear_factor: float | None  # divides positions; None = no scaling
    rope_llama31: bool  # Llama 3.1's frequency scaling, LLAMA31_ROPE
    qkv_bias: bool
    qk_norm: bool  # queries and keys are normalised per head
    sliding_window: int | None  # tokens that a token sees, including itself; None = all earlier ones
    tied: bool  # the output layer is the embedding
    init_std: float

    @property
    def padded_vocab_size(self) -> int:
        return -(-self.vocab_size // VOCAB_MULTIPLE) * VOCAB_MULTIPLE

    @property
    def whole_context(self) -> int:
        """Length of the longest text in which every token still sees all earlier ones."""
        return min(self.max_positions, self.sliding_window or self.max_positions)


def read_config(folder: Path) -> dict[str, Any]:
    """The raw `config.json` of a Hugging Face folder.

    Raises:
        UserError: the folder or file is missing, or the file is not a JSON object.
    """
    path = folder / "config.json"
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; expected a Hugging Face model folder")
    if not path.is_file():
        raise UserError(f"{path}: no such file; a Hugging Face model folder contains config.json and *.safetensors")
    return read_json_object(path)


def facts_from_config(config: dict[str, Any], *, where: str) -> ModelFacts:
    """Read a model's facts; reject keys that Megatron and NeMo cannot represent.

    Args:
        config: the content of `config.json`.
        where: the file's path, for messages.

    Raises:
        UserError: a key is missing, has the wrong type, or has a value that cannot be converted.
    """
    keys = _Keys(config, where)
    model_type = keys.get("model_type", str)
    if model_type not in FAMILIES:
        known = ", ".join(sorted(FAMILIES))
        meant = "Llama, Mistral, Qwen1.5/2/2.5 and dense Qwen3"
        raise keys.refusal("model_type", f"is not supported (supported: {known}, i.e. {meant})")
    family = FAMILIES[model_type]
    _refuse_unrepresentable(keys, family)
    hidden_size, num_heads = keys.positive("hidden_size"), keys.positive("num_attention_heads")
    kv_heads = keys.get("num_key_value_heads", int, family.kv_heads_default) or num_heads
    if kv_heads < 1 or num_heads % kv_heads:
        raise UserError(f"{where}: num_attention_heads={num_heads} is not a multiple of num_key_value_heads={kv_heads}")
    head_dim = keys.get("head_dim", int, family.head_dim_default)
    if head_dim is None:
        if hidden_size % num_heads:
            raise keys.refusal("hidden_size", f"is not a multiple of num_attention_heads={num_heads}")
        head_dim = hidden_size // num_heads
    if head_dim < 1 or head_dim % 2:
        raise UserError(f"{where}: head_dim={head_dim} must be positive and even (rotary embeddings rotate pairs)")
    base, linear_factor, llama31 = _rope(keys)
    return ModelFacts(
        model_type=model_type,
        num_layers=keys.positive("num_hidden_layers"),
        hidden_size=hidden_size,
        ffn_hidden_size=keys.positive("intermediate_size"),
        num_heads=num_heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        vocab_size=keys.positive("vocab_size"),
        max_positions=keys.positive("max_position_embeddings"),
        norm_epsilon=keys.get("rms_norm_eps", float),
        rope_base=base,
        rope_linear_factor=linear_factor,
        rope_llama31=llama31,
        qkv_bias=family.qkv_bias,
        qk_norm=family.qk_norm,
        sliding_window=_window(keys, family),
        tied=keys.get("tie_word_embeddings", bool, False),
        init_std=keys.get("initializer_range", float, 0.02),
    )


class _Keys:
    """Typed access to a config; every error message names the file and key."""

    def __init__(self, config: dict[str, Any], where: str) -> None:
        self.config, self.where = config, where

    def get(self, key: str, kind: type, default: Any = _MISSING) -> Any:
        """The value of `key`; null counts as missing, as in transformers."""
        value = self.config.get(key)
        if value is None:
            if default is _MISSING:
                raise UserError(f"{self.where}: key {key!r} is missing")
            return default
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise UserError(f"{self.where}: {key}={value!r} must be {kind.__name__}, not {type(value).__name__}")
        return value

    def positive(self, key: str) -> int:
        value = self.get(key, int)
        if value < 1:
            raise UserError(f"{self.where}: {key}={value} must be positive")
        return value

    def refusal(self, key: str, reason: str) -> UserError:
        return UserError(f"{self.where}: {key}={self.config[key]!r} {reason}")


def _refuse_unrepresentable(keys: _Keys, family: Family) -> None:
    for key, harmless, reason in _ONLY:
        if keys.get(key, type(harmless), harmless) != harmless:
            raise keys.refusal(key, f"cannot be converted: {reason}")
    if "sliding_attention" in keys.get("layer_types", list, []):
        raise keys.refusal("layer_types", f"cannot be converted: {_WHOLE_CONTEXT}")
    if keys.config.get("quantization_config") is not None:
        raise UserError(f"{keys.where}: quantization_config is set: convert the unquantised model instead")
    architectures = keys.get("architectures", list, [family.architecture])
    if family.architecture not in architectures:
        raise keys.refusal("architectures", f"cannot be converted: expected {family.architecture}")


def _window(keys: _Keys, family: Family) -> int | None:
    """Size of the sliding window in tokens; None if it never hides any.

    Only Mistral uses `sliding_window` by itself: a missing key means transformers' default, null means no window. For
    other families, the key that enables the window is rejected.
    """
    if family.window_default is None or keys.config.get("sliding_window", family.window_default) is None:
        return None
    window = keys.get("sliding_window", int, family.window_default)
    if window < 1:
        raise keys.refusal("sliding_window", "must be positive, or null for no window")
    return window if window < keys.positive("max_position_embeddings") else None


def _rope(keys: _Keys) -> tuple[float, float | None, bool]:
    """(base, linear factor or None, whether Llama 3.1's scaling is used)."""
    scaling = keys.get("rope_scaling", dict, None)
    parameters = keys.get("rope_parameters", dict, None)
    if scaling is not None and parameters is not None and scaling != parameters:
        raise UserError(f"{keys.where}: rope_scaling and rope_parameters disagree: remove one of them")
    name = "rope_parameters" if parameters is not None else "rope_scaling"
    rope = _Keys(parameters or scaling or {}, f"{keys.where}: {name}")
    nested = [key for key, value in rope.config.items() if isinstance(value, dict)]
    if nested:
        raise rope.refusal(nested[0], "cannot be converted: per-layer rotary embeddings are not supported")
    outer, inner = keys.get("rope_theta", float, None), rope.get("rope_theta", float, None)
    if outer is not None and inner is not None and outer != inner:
        raise UserError(f"{keys.where}: rope_theta={outer} and {name}.rope_theta={inner} disagree")
    base = next((value for value in (inner, outer) if value is not None), 10000.0)  # transformers' own default
    if rope.get("partial_rotary_factor", float, 1.0) != 1.0:
        raise rope.refusal("partial_rotary_factor", f"cannot be converted: {_WHOLE_HEADS}")
    # transformers before 4.45 wrote `type`
    kind = rope.get("rope_type", str, rope.get("type", str, "default"))
    if kind == "default":
        return base, None, False
    if kind == "linear":
        return base, rope.get("factor", float), False
    if kind == "llama3":
        for key, value in LLAMA31_ROPE.items():
            if rope.get(key, float) != value:
                raise rope.refusal(key, f"cannot be converted: NeMo hard-codes Llama 3.1's scaling, {key}={value:g}")
        return base, None, True
    key = "rope_type" if "rope_type" in rope.config else "type"
    raise rope.refusal(key, "cannot be converted (supported: default, linear, and llama3 with Llama 3.1's values)")
