"""conf/model, conf/parallel and conf/precision: every combination composes, and those meant to fit do fit."""

from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from nemo_minordpo.config import CONF, compose, load
from nemo_minordpo.convert.facts import facts_from_config
from nemo_minordpo.convert.nemo_config import model_config
from nemo_minordpo.core.memory import GIB, Layout, fullest_rank
from nemo_minordpo.train.model.layout import data_parallel_size
from nemo_minordpo.train.model.model_config import build_model_config, model_size
from nemo_minordpo.train.plan import numerics_of

TOKENS_OF_A_PAIR = 400  # positions that a zero-shot MetaMath pair takes; 60 % of them predict a response token
LLAMA_31_ROPE = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}  # fmt: skip


def hf(model_type, layers, hidden, heads, groups, ffn, vocab, theta, **more):
    return {
        "model_type": model_type, "num_hidden_layers": layers, "hidden_size": hidden, "num_attention_heads": heads,
        "num_key_value_heads": groups, "intermediate_size": ffn, "vocab_size": vocab, "rope_theta": theta,
        "max_position_embeddings": 32768, "rms_norm_eps": 1e-6, "hidden_act": "silu", "tie_word_embeddings": False,
        "torch_dtype": "bfloat16", "initializer_range": 0.02, **more,
    }  # fmt: skip


# their config.json, as published
MODELS = {
    "qwen1.5-7b": hf("qwen2", 32, 4096, 32, 32, 11008, 151936, 1e6),
    "qwen2.5-7b": hf("qwen2", 28, 3584, 28, 4, 18944, 152064, 1e6),
    "qwen2.5-72b": hf("qwen2", 80, 8192, 64, 8, 29568, 152064, 1e6),
    "llama-3.1-8b": hf("llama", 32, 4096, 32, 8, 14336, 128256, 5e5, rope_scaling=LLAMA_31_ROPE),
    "llama-3.1-70b": hf("llama", 80, 8192, 64, 8, 28672, 128256, 5e5, rope_scaling=LLAMA_31_ROPE),
}
SMALL = hf("qwen2", 28, 1536, 12, 2, 8960, 151936, 1e6, tie_word_embeddings=True)  # Qwen2.5-1.5B
BILLIONS = {"qwen1.5-7b": 7.72, "qwen2.5-7b": 7.62, "qwen2.5-72b": 72.7, "llama-3.1-8b": 8.03, "llama-3.1-70b": 70.6}


def names(group):
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def composed(*overrides):
    inputs = [
        "pretrained_checkpoint.restore_from_path=base.nemo", "model.data.data_prefix.train=[train.jsonl]",
        "exp_manager.explicit_log_dir=run", "model.dpo.ref_policy_kl_penalty=0.1",
    ]  # fmt: skip
    return load(compose([*inputs, *overrides]))


def built(config, architecture):
    facts = facts_from_config(architecture, where="config.json")
    checkpoint = model_config(facts, tokenizer=Path("tokenizer"), dtype=torch.bfloat16)
    return build_model_config(config, OmegaConf.create(checkpoint), cuda=True, te=True)


def memory_gib(config, architecture):
    """Memory of the fullest rank, with rows as full as possible."""
    model = built(config, architecture)
    section, data_parallel = config.model, data_parallel_size(config)
    rows = section.data.packed_sequence_size
    layout = Layout(
        tensor_parallel=section.tensor_model_parallel_size, pipeline_parallel=section.pipeline_model_parallel_size,
        sequence_parallel=section.sequence_parallel, recompute=False, row_length=rows,
        num_rows=rows_of_a_rank(config), num_targets=round(0.6 * rows),
    )  # fmt: skip
    size = model_size(model, vocab_size=0)
    tied = bool(model.share_embeddings_and_output_weights)
    memory = fullest_rank(
        size, layout, numerics_of(config, data_parallel=data_parallel, cuda=True), tied=tied, cuda=True
    )
    return memory.total / GIB


def rows_of_a_rank(config):
    section = config.model
    places = section.global_batch_size * TOKENS_OF_A_PAIR
    return places / section.data.packed_sequence_size / data_parallel_size(config)


def test_every_shipped_model_has_the_size_in_its_name():
    assert names("model") == sorted(MODELS)
    assert names("parallel") == ["gpus1", "gpus16", "gpus2", "gpus64", "gpus8"]
    assert names("precision") == ["bf16", "fp32", "fp8_hybrid"]
    assert names("fusions") == ["te"]
    for name, architecture in MODELS.items():
        config = composed(f"model={name}", "parallel=gpus16", "precision=bf16")
        size = model_size(built(config, architecture), vocab_size=0)
        weights = size.num_layers * size.weights_of_layer + 2 * size.vocab_size * size.hidden_size
        assert weights / 1e9 == pytest.approx(BILLIONS[name], rel=0.003)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("precision", ["bf16", "fp8_hybrid"])
@pytest.mark.parametrize("parallel", ["gpus1", "gpus2", "gpus8", "gpus16", "gpus64"])
def test_every_combination_is_built_or_refused_for_its_ranks_only(name, precision, parallel):
    config = composed(f"model={name}", f"parallel={parallel}", f"precision={precision}")
    ranks = config.trainer.num_nodes * config.trainer.devices
    assert ranks == int(parallel.removeprefix("gpus"))
    needed = config.model.tensor_model_parallel_size * config.model.pipeline_model_parallel_size
    if ranks % needed:
        with pytest.raises(ValueError, match="nearest layouts") as error:
            built(config, MODELS[name])
        assert len(str(error.value).splitlines()) == 2
        return
    model = built(config, MODELS[name])
    assert bool(model.fp8) == (precision == "fp8_hybrid")
    assert model.megatron_amp_O2 is True
    assert config.model.tensor_model_parallel_size <= config.trainer.devices  # never across nodes


@pytest.mark.parametrize(
    ("name", "parallel"),
    [(name, "gpus64" if MODELS[name]["num_hidden_layers"] == 80 else "gpus8") for name in MODELS],
)
def test_a_model_fits_in_80_gb_where_its_file_says_so(name, parallel):
    config = composed(f"model={name}", f"parallel={parallel}", "precision=bf16")
    assert 30 < memory_gib(config, MODELS[name]) < 70  # leaves a few GiB for what the estimate does not cover
    # the pipeline is idle less than half of the time
    assert rows_of_a_rank(config) >= 1.5 * config.model.pipeline_model_parallel_size


def test_models_for_one_and_two_gpus_fit():
    alone = composed("parallel=gpus1", "precision=bf16")
    assert memory_gib(alone, SMALL) < 70
    assert memory_gib(alone, MODELS["qwen1.5-7b"]) > 80
    adapters = ["model.peft.peft_scheme=lora", "model.optim.name=adamw", "model.sequence_parallel=true"]
    two = composed("model=qwen1.5-7b", "parallel=gpus2", "precision=bf16", *adapters)
    assert memory_gib(two, MODELS["qwen1.5-7b"]) < 70
    one = composed("parallel=gpus1", "precision=bf16", "model.peft.peft_scheme=lora")
    assert memory_gib(one, MODELS["qwen1.5-7b"]) < 70


def test_fp8_requires_multiples_of_16():
    config = composed("precision=fp8_hybrid")
    odd = {**SMALL, "intermediate_size": 8968}
    with pytest.raises(ValueError, match=r"model.fp8: ffn_hidden_size / TP = 8968 is not a multiple of 16"):
        built(config, odd)
    assert built(config, SMALL).fp8_amax_history_len == 1024
    assert built(config, SMALL).fp8_margin == 0


FUSIONS = ("apply_rope_fusion", "bias_activation_fusion", "gradient_accumulation_fusion")


@pytest.mark.parametrize("precision", ["bf16", "fp8_hybrid"])
def test_fusions_are_set_as_requested(precision):
    single = built(composed(f"precision={precision}"), SMALL)
    fused = built(composed(f"precision={precision}", "fusions=te"), SMALL)
    assert [single[name] for name in FUSIONS] == [False] * 3
    assert [fused[name] for name in FUSIONS] == [True] * 3
    one_off = composed(f"precision={precision}", "fusions=te", "model.apply_rope_fusion=false")
    assert [built(one_off, SMALL)[name] for name in FUSIONS] == [False, True, True]


def test_gradients_are_accumulated_in_main_gradients_or_not_fused():
    with pytest.raises(ValueError, match=r"model\.gradient_accumulation_fusion=true \(fusions=te\) needs"):
        built(composed("fusions=te"), SMALL)
    built(composed("fusions=te", "model.gradient_accumulation_fusion=false"), SMALL)
