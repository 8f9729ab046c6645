"""The layouts against slow loops, both ways, and the table against names written out by hand."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_hf import config_of, tensors_of
from torch import Tensor

from nemo_minordpo.convert.facts import FAMILIES, ModelFacts, facts_from_config
from nemo_minordpo.convert.mapping import (
    extra_state_keys,
    join_gate_up,
    join_qkv,
    mapping_table,
    pad_vocab,
    split_gate_up,
    split_qkv,
    unpad_vocab,
)


def facts_of(model_type: str = "llama", **changes: object) -> ModelFacts:
    return facts_from_config(config_of(model_type, **changes), where="test")


def slow_qkv(q: Tensor, k: Tensor, v: Tensor, facts: ModelFacts) -> Tensor:
    """Row by row: for each group its query heads, then key head, then value head."""
    d, rows = facts.head_dim, []
    per_group = facts.num_heads // facts.num_kv_heads
    for group in range(facts.num_kv_heads):
        for head in range(group * per_group, (group + 1) * per_group):
            rows += [q[head * d + i] for i in range(d)]
        rows += [k[group * d + i] for i in range(d)]
        rows += [v[group * d + i] for i in range(d)]
    return torch.stack(rows)


@given(
    groups=st.integers(1, 4), per_group=st.integers(1, 4), half=st.integers(1, 4), hidden=st.integers(1, 5),
    bias=st.booleans(),
)  # fmt: skip
def test_qkv_against_the_slow_loop(groups: int, per_group: int, half: int, hidden: int, bias: bool) -> None:
    n, d = groups * per_group, 2 * half
    facts = facts_of(num_attention_heads=n, num_key_value_heads=groups, head_dim=d)
    tail = () if bias else (hidden,)
    parts = [torch.randn(rows * d, *tail) for rows in (n, groups, groups)]
    whole = join_qkv(parts, facts)
    assert torch.equal(whole, slow_qkv(*parts, facts))
    for part, back in zip(parts, split_qkv(whole, facts), strict=True):
        assert torch.equal(part, back)


def test_qkv_by_hand() -> None:
    facts = facts_of(num_attention_heads=4, num_key_value_heads=2, head_dim=2)
    q, k, v = torch.arange(8), torch.arange(10, 14), torch.arange(20, 24)
    assert join_qkv([q, k, v], facts).tolist() == [0, 1, 2, 3, 10, 11, 20, 21, 4, 5, 6, 7, 12, 13, 22, 23]


def test_gate_comes_first() -> None:
    gate, up = torch.zeros(2, 3), torch.ones(2, 3)
    whole = join_gate_up([gate, up], facts_of())
    assert whole[:, 0].tolist() == [0, 0, 1, 1]
    back = split_gate_up(whole, facts_of())
    assert torch.equal(back[0], gate)
    assert torch.equal(back[1], up)


def test_vocabulary_is_padded_with_zero_rows_and_cut_again() -> None:
    facts = facts_of(vocab_size=130)
    table = torch.randn(130, 3, dtype=torch.bfloat16)
    whole = pad_vocab([table], facts)
    assert whole.shape == (256, 3)
    assert whole.dtype == torch.bfloat16
    assert whole[130:].abs().sum() == 0
    assert torch.equal(unpad_vocab(whole, facts)[0], table)
    assert torch.equal(unpad_vocab(whole[:136], facts)[0], table)  # padded to another multiple by another tool


@pytest.mark.parametrize("model_type", FAMILIES)
@pytest.mark.parametrize("tied", [True, False])
def test_the_table_covers_every_tensor_once_with_its_shape(model_type: str, tied: bool) -> None:
    config = config_of(model_type, tie_word_embeddings=tied)
    facts = facts_from_config(config, where="test")
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors_of(config).items()}
    named = [
        (name.format(layer), shape)
        for row in mapping_table(facts)
        for layer in row.layers(facts)
        for name, shape in row.hf.items()
    ]
    assert len(named) == len(shapes)
    assert dict(named) == shapes


def test_megatron_names_and_shapes_by_hand() -> None:
    facts = facts_of("qwen2")  # 6 heads, 2 groups, head size 4, hidden 24, ffn 20, vocabulary 131
    assert {row.megatron: row.shape(facts) for row in mapping_table(facts)} == {
        "embedding.word_embeddings.weight": (256, 24),
        "decoder.layers.self_attention.linear_qkv.layer_norm_weight": (24,),
        "decoder.layers.self_attention.linear_qkv.weight": (40, 24),
        "decoder.layers.self_attention.linear_qkv.bias": (40,),
        "decoder.layers.self_attention.linear_proj.weight": (24, 24),
        "decoder.layers.mlp.linear_fc1.layer_norm_weight": (24,),
        "decoder.layers.mlp.linear_fc1.weight": (40, 24),
        "decoder.layers.mlp.linear_fc2.weight": (24, 20),
        "decoder.final_layernorm.weight": (24,),
        "output_layer.weight": (256, 24),
    }


def test_norms_of_queries_and_keys() -> None:
    """Qwen3 has two more tensors than Llama, with extra states, which Transformer Engine requests from 1.13 on."""
    llama, qwen3 = facts_of(num_hidden_layers=2), facts_of("qwen3", num_hidden_layers=2)
    attention = "decoder.layers.self_attention."
    shapes = [{row.megatron: row.shape(facts) for row in mapping_table(facts)} for facts in (llama, qwen3)]
    assert shapes[1] == {
        **shapes[0],
        f"{attention}q_layernorm.weight": (4,),
        f"{attention}k_layernorm.weight": (4,),
    }
    assert set(extra_state_keys(qwen3)) - set(extra_state_keys(llama)) == {
        f"{attention}{name}_layernorm._extra_state/shard_{layer}_2" for name in "qk" for layer in (0, 1)
    }


def test_tensors_come_in_the_order_of_a_forward_pass() -> None:
    facts = facts_of(num_hidden_layers=2)
    turns = {row.megatron: [row.turn(layer, facts) for layer in row.layers(facts)] for row in mapping_table(facts)}
    assert turns.pop("embedding.word_embeddings.weight") == [-1]
    assert turns.pop("decoder.final_layernorm.weight") == turns.pop("output_layer.weight") == [2]
    assert len(turns) == 6
    assert all(turn == [0, 1] for turn in turns.values())


def test_extra_states_that_transformer_engine_requests() -> None:
    assert sorted(extra_state_keys(facts_of(num_hidden_layers=2))) == [
        "decoder.final_layernorm._extra_state/shard_0_1",
        "decoder.layers.mlp.linear_fc1._extra_state/shard_0_2",
        "decoder.layers.mlp.linear_fc1._extra_state/shard_1_2",
        "decoder.layers.mlp.linear_fc2._extra_state/shard_0_2",
        "decoder.layers.mlp.linear_fc2._extra_state/shard_1_2",
        "decoder.layers.self_attention.core_attention._extra_state/shard_0_2",
        "decoder.layers.self_attention.core_attention._extra_state/shard_1_2",
        "decoder.layers.self_attention.linear_proj._extra_state/shard_0_2",
        "decoder.layers.self_attention.linear_proj._extra_state/shard_1_2",
        "decoder.layers.self_attention.linear_qkv._extra_state/shard_0_2",
        "decoder.layers.self_attention.linear_qkv._extra_state/shard_1_2",
    ]
