"""The `model_config.yaml` of a `.nemo`: write a model's facts in NeMo's spelling, and compare them."""

from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from nemo_minordpo.config import default_of
from nemo_minordpo.convert.facts import VOCAB_MULTIPLE, ModelFacts
from nemo_minordpo.errors import UserError

# The keys are those of this NeMo version; later ones up to 2.4, the last with MegatronGPTModel, read them unchanged.
NEMO_VERSION = "2.1.0"
TARGET = "nemo.collections.nlp.models.language_modeling.megatron_gpt_model.MegatronGPTModel"
# Fused kernels need CUDA, some need Apex; they only affect speed, so the run decides about them.
NO_FUSIONS = {
    "masked_softmax_fusion": False,
    "bias_activation_fusion": False,
    "bias_dropout_add_fusion": False,
    "gradient_accumulation_fusion": False,
    "apply_rope_fusion": False,
    "persist_layer_norm": False,
}
_PRECISIONS = {torch.float32: 32, torch.bfloat16: "bf16", torch.float16: 16}


def architecture_keys(facts: ModelFacts) -> dict[str, Any]:
    """The keys that determine shapes and arithmetic: equal in a `.nemo` and in a run started from it."""
    return {
        "num_layers": facts.num_layers,
        "hidden_size": facts.hidden_size,
        "ffn_hidden_size": facts.ffn_hidden_size,
        "num_attention_heads": facts.num_heads,
        "num_query_groups": facts.num_kv_heads,
        "kv_channels": facts.head_dim,
        "normalization": "rmsnorm",
        "layernorm_epsilon": facts.norm_epsilon,
        "bias": False,
        "qkv_bias": facts.qkv_bias,
        "qk_layernorm": facts.qk_norm,
        "activation": "fast-swiglu",
        "position_embedding_type": "rope",
        "rotary_percentage": 1.0,
        "rotary_base": facts.rope_base,
        "rotary_interleaved": False,
        "seq_len_interpolation_factor": facts.rope_linear_factor,
        "scale_positional_embedding": facts.rope_llama31,
    }


def model_config(facts: ModelFacts, *, tokenizer: Path, dtype: torch.dtype) -> dict[str, Any]:
    """Everything needed to restore a MegatronGPTModel; parallel sizes are 1 and change on loading.

    Args:
        facts: the model's facts.
        tokenizer: absolute path of the Hugging Face tokenizer's folder, since `.nemo` files do not contain one.
        dtype: type of the weights.
    """
    return {
        "mcore_gpt": True,
        "name": "",  # NeMo then takes the layer spec implied by `transformer_engine`
        "transformer_engine": True,
        "encoder_seq_length": facts.max_positions,
        "max_position_embeddings": facts.max_positions,
        **architecture_keys(facts),
        # as in NeMo's own importer; in Transformer Engine a token then sees one more than in Hugging Face
        "window_size": None if facts.sliding_window is None else [facts.sliding_window, 0],
        "share_embeddings_and_output_weights": facts.tied,
        # otherwise NeMo would use the number of the tokenizer's tokens, which is below the number of embedding rows
        "override_vocab_size": facts.padded_vocab_size,
        # our own key: rows beyond it are padding, which training excludes from the softmax
        "unpadded_vocab_size": facts.vocab_size,
        "make_vocab_size_divisible_by": VOCAB_MULTIPLE,
        "init_method_std": facts.init_std,
        "use_scaled_init_method": True,
        "hidden_dropout": 0.0,
        "attention_dropout": 0.0,
        "ffn_dropout": 0.0,
        "apply_query_key_layer_scaling": False,
        "normalize_attention_scores": True,
        "attention_type": "multihead",
        "transformer_block_type": "pre_ln",
        "headscale": False,
        "openai_gelu": False,
        "do_layer_norm_weight_decay": False,
        "pre_process": True,
        "post_process": True,
        "tokenizer": {
            "library": "huggingface",
            "type": str(tokenizer),
            "use_fast": True,
            "model": None,
            "vocab_file": None,
            "merge_file": None,
            "delimiter": None,
            "sentencepiece_legacy": False,
        },
        "precision": _PRECISIONS[dtype],
        "micro_batch_size": 1,
        "global_batch_size": 1,
        "tensor_model_parallel_size": 1,
        "pipeline_model_parallel_size": 1,
        "virtual_pipeline_model_parallel_size": None,
        "context_parallel_size": 1,
        "sequence_parallel": False,
        "megatron_amp_O2": False,
        "fp32_residual_connection": False,
        "fp16_lm_cross_entropy": False,
        "seed": default_of("model.seed"),
        **NO_FUSIONS,
        "get_attention_mask_from_fusion": True,
        "use_cpu_initialization": False,
        "activations_checkpoint_granularity": None,
        "activations_checkpoint_method": None,
        "activations_checkpoint_num_layers": None,
        "activations_checkpoint_layers_per_pipeline": None,
        "fp8": False,
        "fp8_e4m3": False,
        "fp8_hybrid": False,
        "native_amp_init_scale": 2**32,
        "native_amp_growth_interval": 1000,
        "hysteresis": 2,
        "gradient_as_bucket_view": True,
        "nsys_profile": {"enabled": False},
        "optim": {"name": "adamw", "lr": 1e-6, "weight_decay": 0.0},
        "data": {
            "data_impl": "mock",
            "data_prefix": [],
            "splits_string": "900,50,50",
            "seq_length": facts.max_positions,
            "num_workers": 0,
            "dataloader_type": "single",
        },
        "target": TARGET,
        "nemo_version": NEMO_VERSION,
    }


def write_model_config(path: Path, config: dict[str, Any]) -> None:
    OmegaConf.save(OmegaConf.create(config), path)


def read_model_config(path: Path) -> dict[str, Any]:
    """A `model_config.yaml` as plain values.

    Raises:
        UserError: not a YAML mapping.
    """
    try:
        config = OmegaConf.to_container(OmegaConf.load(path), resolve=True)
    except Exception as error:  # yaml's and omegaconf's errors have no common base
        raise UserError(f"{path}: unreadable ({type(error).__name__}: {error})") from error
    if not isinstance(config, dict):
        raise UserError(f"{path}: expected a mapping")
    return {str(key): value for key, value in config.items()}


def differences(facts: ModelFacts, config: dict[str, Any]) -> list[str]:
    """Where a model config contradicts a model's facts, as `key: FOUND instead of WANTED`; empty if they agree.

    A missing key means NeMo's default and is compared as such.
    """
    defaults = {
        "ffn_hidden_size": 4 * facts.hidden_size,
        "num_query_groups": config.get("num_attention_heads"),
        "kv_channels": _quotient(config.get("hidden_size"), config.get("num_attention_heads")),
        "layernorm_epsilon": 1e-5,
        "rotary_percentage": 1.0,
        "rotary_base": 10000.0,
        "rotary_interleaved": False,
        "scale_positional_embedding": False,
        "bias": True,
        "qkv_bias": config.get("bias", True),
        "qk_layernorm": False,
    }
    found = []
    for key, wanted in architecture_keys(facts).items():
        value = config.get(key)
        if value is None:
            value = defaults.get(key)
        if value != wanted:
            found.append(f"{key}: {value!r} instead of {wanted!r}")
    return found


def _quotient(size: Any, heads: Any) -> Any:
    return size // heads if isinstance(size, int) and isinstance(heads, int) and heads else None
