"""Architectures that Megatron-Bridge builds: each trains as transformers does, or is refused with the reason."""

import json
import subprocess
import sys

import pytest
import torch
from transformers import AutoConfig

from tests.bridge.running import (
    ADAM,
    LAYOUTS,
    ROOT,
    SGD,
    TP2,
    metrics,
    needs_bridge,
    require_equal,
    require_same_bits,
    resume_from,
    train,
)
from tests.by_hand import load, read_rows, trained
from tests.tiny import SIZES, write_folder, write_pairs

pytestmark = needs_bridge
_EXPERTS = {
    "num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4, "num_experts_per_tok": 2,
    "moe_intermediate_size": 48,
}  # fmt: skip
# by transformers' name of the architecture: what it needs besides the usual sizes
TRAINED = {
    "mistral": {"sliding_window": 2048},  # longer than any pair
    "gemma": {"head_dim": 24, "hidden_act": "gelu_pytorch_tanh"},
    "qwen3_moe": {"head_dim": 16, "norm_topk_prob": True, "decoder_sparse_step": 1, **_EXPERTS},
}
REFUSED = {
    "phi3": ({"pad_token_id": 0}, "'Phi3ForCausalLM' is not yet supported"),
    "gemma2": ({"head_dim": 16}, "layers of its own (gemma2_layer_spec)"),
    "olmoe": (_EXPERTS, "layers of its own (olmoe_layer_spec)"),
    "deepseek_v3": (
        {"q_lora_rank": 24, "kv_lora_rank": 24, "qk_rope_head_dim": 8, "qk_nope_head_dim": 16, "v_head_dim": 16,
         "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1, **_EXPERTS},
        "layers of its own (get_gpt_decoder_block_spec)",
    ),
    "gemma3_text": ({"head_dim": 16, "sliding_window": 32}, "sliding window"),
    "gpt_oss": ({"head_dim": 16, **_EXPERTS}, "sliding window"),
}  # fmt: skip
# Megatron-Core wants sequence parallelism for experts under tensor parallelism
EXPERTS = {
    "spread over two ranks": (2, ["model.expert_model_parallel_size=2", "model.data.packed_sequence_size=200"]),
    "split by TP2": (2, [TP2, "model.sequence_parallel=true", "model.data.packed_sequence_size=200"]),
    "PP2": LAYOUTS["PP2"],
}

# Architectures by transformers' `model_type` and class, with its default sizes, and why they are refused before any
# weight is read; "" = they are not.
KNOWN = {
    ("qwen2", "Qwen2ForCausalLM"): "", ("qwen3", "Qwen3ForCausalLM"): "", ("llama", "LlamaForCausalLM"): "",
    ("mistral", "MistralForCausalLM"): "", ("gemma", "GemmaForCausalLM"): "", ("qwen3_moe", "Qwen3MoeForCausalLM"): "",
    ("gemma2", "Gemma2ForCausalLM"): "gemma2_layer_spec", ("gemma3_text", "Gemma3ForCausalLM"): "gemma3_layer_spec",
    ("exaone4", "Exaone4ForCausalLM"): "exaone4_layer_spec", ("olmoe", "OlmoeForCausalLM"): "olmoe_layer_spec",
    ("deepseek_v2", "DeepseekV2ForCausalLM"): "get_gpt_decoder_block_spec",
    ("deepseek_v3", "DeepseekV3ForCausalLM"): "get_gpt_decoder_block_spec",
    ("glm4_moe", "Glm4MoeForCausalLM"): "get_gpt_decoder_block_spec",
    ("ernie4_5_moe", "Ernie4_5_MoeForCausalLM"): "_ernie45_decoder_block_spec",
    ("minimax_m2", "MiniMaxM2ForCausalLM"): "minimax_m2_layer_spec",
    ("qwen3_next", "Qwen3NextForCausalLM"): "get_transformer_block_with_experimental_attention_variant_spec",
    ("gpt_oss", "GptOssForCausalLM"): "position_embedding_type='yarn', softmax_type='learnable'",
    ("nemotron", "NemotronForCausalLM"): "normalization='LayerNorm'",
    **dict.fromkeys(
        (("phi3", "Phi3ForCausalLM"), ("olmo2", "Olmo2ForCausalLM"), ("mixtral", "MixtralForCausalLM"),
         ("qwen2_moe", "Qwen2MoeForCausalLM"), ("granite", "GraniteForCausalLM"), ("llama4_text", "Llama4ForCausalLM")),
        "not yet supported",
    ),
}  # fmt: skip
_REASONS = """
import json, sys
from nemo_minordpo import host
host.prepare("bridge")
from megatron.bridge import AutoBridge
from transformers import AutoConfig
from nemo_minordpo.train.hosts.bridge.layers import pack_pairs
reasons = []
for kind, architecture in json.loads(sys.argv[1]):
    config = AutoConfig.for_model(kind)
    config.architectures = [architecture]
    try:
        pack_pairs(AutoBridge.from_hf_config(config).to_megatron_provider(load_weights=False))
        reasons.append("")
    except ValueError as error:
        reasons.append(str(error))
print(json.dumps(reasons))
"""


@pytest.fixture(scope="session")
def workspace(tmp_path_factory):
    folder = tmp_path_factory.mktemp("families")
    write_pairs(folder / "train.jsonl", count=22, seed=0)
    return folder


@pytest.fixture(scope="session")
def written(workspace):
    """Writes a model once."""

    def of(family, options):
        if not (workspace / family).exists():
            known = AutoConfig.for_model(family)
            sizes = {name: value for name, value in {**SIZES, **options}.items() if hasattr(known, name)}
            write_folder(workspace / family, type(known)(**sizes), norms=0.2)
        return workspace / family

    return of


@pytest.fixture(scope="session")
def by_hand(workspace, written):
    known = {}

    def of(family):
        if family not in known:
            folder = written(family, TRAINED[family])
            known[family] = trained(folder, workspace / "train.jsonl", num_steps=6)
        return known[family]

    return of


@pytest.mark.parametrize("family", TRAINED)
@pytest.mark.parametrize("layout", ["one rank"])
def test_a_family_trains_as_in_transformers(workspace, by_hand, tmp_path, family, layout):
    ranks, overrides = LAYOUTS[layout]
    expected = by_hand(family)
    run = train(workspace, tmp_path / "run", *SGD, *overrides, family=family, ranks=ranks)
    require_equal(run, workspace / family, expected)


@pytest.mark.parametrize("layout", EXPERTS)
def test_a_mixture_of_experts_at_layouts(workspace, by_hand, tmp_path, layout):
    ranks, overrides = EXPERTS[layout]
    expected = by_hand("qwen3_moe")
    run = train(workspace, tmp_path / "run", *SGD, *overrides, family="qwen3_moe", ranks=ranks)
    require_equal(run, workspace / "qwen3_moe", expected)


def test_experts_on_two_ranks_resume_to_the_bit(workspace, by_hand, tmp_path):
    by_hand("qwen3_moe")
    ranks, overrides = EXPERTS["spread over two ranks"]
    overrides = [*ADAM, *overrides]
    whole = train(workspace, tmp_path / "whole", *overrides, family="qwen3_moe", ranks=ranks)
    resumed = resume_from(whole, tmp_path / "resumed", step=2)
    train(workspace, resumed, *overrides, family="qwen3_moe", ranks=ranks)
    require_same_bits(whole, resumed)


def test_the_auxiliary_loss_evens_out_the_experts(workspace, by_hand, tmp_path):
    """It changes the gradient of the router, and is not part of the loss that is reported."""
    by_hand("qwen3_moe")
    runs = [
        train(workspace, tmp_path / name, *SGD, f"model.moe_aux_loss_coeff={name}", family="qwen3_moe")
        for name in ("0", "10")
    ]
    without, with_it = (metrics(run)[0].values for run in runs)
    assert with_it["loss"] == without["loss"]
    assert with_it["grad_norm"] > 1.5 * without["grad_norm"]
    uneven_without, uneven_with = (unevenness(run / "hf", workspace / "train.jsonl") for run in runs)
    assert uneven_with < uneven_without


def unevenness(model, pairs):
    """Variance of the mean router probabilities over a layer's experts, in all layers."""
    policy, tokenizer = load(model)
    tokens = tokenizer(read_rows(pairs)[0]["prompt"], return_tensors="pt").input_ids
    with torch.no_grad():
        logits = policy(tokens, output_router_logits=True).router_logits
    return sum(layer.softmax(-1).mean(0).var().item() for layer in logits)


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        (["model.expert_model_parallel_size=3", "trainer.devices=3"], "does not divide the model's 4 experts"),
        (["model.expert_model_parallel_size=2"], "does not divide the 1 data-parallel ranks"),
        ([TP2, "trainer.devices=2"], "needs model.sequence_parallel=true"),
        (["model.peft.peft_scheme=lora"], "adapters of experts are not supported"),
        (["model.expert_model_parallel_size=2", "trainer.devices=2", "trainer.dpo.watch.interval=1"],
         "ranks that share experts"),
    ],
)  # fmt: skip
def test_settings_of_experts_that_cannot_work(workspace, by_hand, tmp_path, overrides, reason):
    by_hand("qwen3_moe")
    assert reason in train(workspace, tmp_path / "run", *overrides, family="qwen3_moe", fails=True)


@pytest.mark.parametrize("family", REFUSED)
def test_what_packed_pairs_do_not_support_is_refused(workspace, written, tmp_path, family):
    options, reason = REFUSED[family]
    written(family, options)
    error = train(workspace, tmp_path / "run", *SGD, family=family, fails=True)
    assert reason in error
    assert "Traceback" not in error


def test_what_is_known_of_other_architectures():
    command = [sys.executable, "-c", _REASONS, json.dumps(list(KNOWN))]
    printed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for (known, expected), reason in zip(KNOWN.items(), json.loads(printed.splitlines()[-1]), strict=True):
        assert expected in reason, known
        assert bool(reason) == bool(expected), known
