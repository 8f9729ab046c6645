"""The only table of names and layouts: Hugging Face on one side, Megatron's distributed checkpoint on the other.

Both directions use `mapping_table`. A row lists the Hugging Face tensors that make up one Megatron tensor, and a
layout, a pair of inverse functions, defines how. Symbols: n query heads, g key/value heads (groups), d head
dimension, h hidden size, f feed-forward size, V vocabulary.

Megatron names are those on disk: one tensor covers all layers, with the layer as its first axis, and a norm belongs to
the linear layer after it, as in Transformer Engine's fused modules. Megatron-Core maps its unfused modules to the same
names, so one checkpoint works for both. No rotary permutation is needed: neither Hugging Face nor Megatron
(`rotary_interleaved: false`) interleaves the two halves of a head.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from nemo_minordpo.convert.facts import ModelFacts

# Embedding and head are by far the largest tensors; the padded vocabulary is a multiple of this.
VOCAB_BLOCKS = 8

EMBEDDING, HEAD = "embedding.word_embeddings.weight", "output_layer.weight"
# States that any version of Transformer Engine requests when loading a checkpoint: FP8 scales, which a converted model
# does not have. Megatron's local layers request the first four; from Transformer Engine 1.8 attention requests one too,
# and from 1.13 the norms. A strict load fails if one is missing; extra ones do no harm.
LAYER_EXTRA_STATES = (
    "decoder.layers.self_attention.linear_qkv._extra_state",
    "decoder.layers.self_attention.linear_proj._extra_state",
    "decoder.layers.mlp.linear_fc1._extra_state",
    "decoder.layers.mlp.linear_fc2._extra_state",
    "decoder.layers.self_attention.core_attention._extra_state",
)
_QUERY_KEY_EXTRA_STATES = (
    "decoder.layers.self_attention.q_layernorm._extra_state",
    "decoder.layers.self_attention.k_layernorm._extra_state",
)
MODEL_EXTRA_STATES = ("decoder.final_layernorm._extra_state",)


@dataclass(frozen=True)
class Layout:
    """How the parts (Hugging Face) are laid out in the whole (Megatron), both ways; `split(join(parts)) == parts`.

    The checkpoint stores a whole in `num_blocks` chunks of rows. A reader holds an entire chunk in memory besides its
    target, and a tensor-parallel rank reads every chunk that it needs a part of.
    """

    join: Callable[[list[Tensor], ModelFacts], Tensor]
    split: Callable[[Tensor, ModelFacts], list[Tensor]]
    num_blocks: int = 1


def join_qkv(parts: list[Tensor], facts: ModelFacts) -> Tensor:
    """Interleave q [n*d, ...], k and v [g*d, ...] by group into [(n + 2g)*d, ...].

    Rows of group j: the n/g query heads that share key/value head j, then k_j, then v_j.
    """
    q, k, v = parts
    g, d, tail = facts.num_kv_heads, facts.head_dim, q.shape[1:]
    grouped = [q.reshape(g, -1, d, *tail), k.reshape(g, 1, d, *tail), v.reshape(g, 1, d, *tail)]
    return torch.cat(grouped, dim=1).reshape(-1, *tail)


def split_qkv(whole: Tensor, facts: ModelFacts) -> list[Tensor]:
    """The inverse of `join_qkv`."""
    g, d, tail = facts.num_kv_heads, facts.head_dim, whole.shape[1:]
    heads_per_group = facts.num_heads // g
    grouped = whole.reshape(g, heads_per_group + 2, d, *tail)
    return [part.reshape(-1, *tail) for part in grouped.split([heads_per_group, 1, 1], dim=1)]


def join_gate_up(parts: list[Tensor], facts: ModelFacts) -> Tensor:
    """[gate; up], 2f rows: Megatron's swiglu applies SiLU to the first half."""
    return torch.cat(parts)


def split_gate_up(whole: Tensor, facts: ModelFacts) -> list[Tensor]:
    """The inverse of `join_gate_up`."""
    return list(whole.chunk(2))


def pad_vocab(parts: list[Tensor], facts: ModelFacts) -> Tensor:
    """Append zero rows up to the padded vocabulary; their logits are 0 before training."""
    (table,) = parts
    num_rows = facts.padded_vocab_size - facts.vocab_size
    return torch.cat([table, table.new_zeros(num_rows, *table.shape[1:])]) if num_rows else table


def unpad_vocab(whole: Tensor, facts: ModelFacts) -> list[Tensor]:
    """The first V rows, regardless of padding."""
    return [whole[: facts.vocab_size]]


def _only(parts: list[Tensor], facts: ModelFacts) -> Tensor:
    (part,) = parts
    return part


SAME = Layout(_only, lambda whole, facts: [whole])
QKV = Layout(join_qkv, split_qkv)
GATE_UP = Layout(join_gate_up, split_gate_up, num_blocks=2)
VOCAB = Layout(pad_vocab, unpad_vocab, num_blocks=VOCAB_BLOCKS)


@dataclass(frozen=True)
class Row:
    """One tensor of a Megatron checkpoint and the Hugging Face tensors that it consists of.

    `hf` maps names to shapes. `{}` in a name is the layer index; the Megatron tensor then has a leading layer axis.
    `megatron` is the on-disk name without the prefix `model.`.
    """

    megatron: str
    hf: dict[str, tuple[int, ...]]
    layout: Layout

    @property
    def per_layer(self) -> bool:
        return "{}" in next(iter(self.hf))

    def layers(self, facts: ModelFacts) -> list[int | None]:
        """The layer indices that the row covers; [None] for a tensor outside the layers."""
        return list(range(facts.num_layers)) if self.per_layer else [None]

    def turn(self, layer: int | None, facts: ModelFacts) -> int:
        """Position of the tensor in a forward pass: embedding, then the layers, then everything after the last.

        In this order, a conversion accesses neighbouring parts of the files on both sides.
        """
        if layer is not None:
            return layer
        return -1 if self.megatron.startswith("embedding.") else facts.num_layers

    def hf_names(self, layer: int | None) -> list[str]:
        return [name.format(layer) for name in self.hf]

    def join(self, parts: list[Tensor], facts: ModelFacts) -> Tensor:
        return self.layout.join(parts, facts)

    def split(self, whole: Tensor, facts: ModelFacts) -> list[Tensor]:
        return self.layout.split(whole, facts)

    def shape(self, facts: ModelFacts) -> tuple[int, ...]:
        """Shape of the Megatron tensor, without the layer axis."""
        return tuple(self.join([torch.empty(shape, device="meta") for shape in self.hf.values()], facts).shape)


def mapping_table(facts: ModelFacts) -> list[Row]:
    """All tensors of the model, each once. A tied model has no output layer on either side."""
    h, f, vocab = facts.hidden_size, facts.ffn_hidden_size, facts.vocab_size
    query, key_value = facts.num_heads * facts.head_dim, facts.num_kv_heads * facts.head_dim
    layer, hf_layer = "decoder.layers.", "model.layers.{}."
    attention, hf_attention = layer + "self_attention.", hf_layer + "self_attn."
    qkv_sizes = {"q_proj": query, "k_proj": key_value, "v_proj": key_value}
    rows = [
        Row(EMBEDDING, {"model.embed_tokens.weight": (vocab, h)}, VOCAB),
        Row(attention + "linear_qkv.layer_norm_weight", {hf_layer + "input_layernorm.weight": (h,)}, SAME),
        Row(
            attention + "linear_qkv.weight",
            {f"{hf_attention}{name}.weight": (size, h) for name, size in qkv_sizes.items()},
            QKV,
        ),
        Row(attention + "linear_proj.weight", {hf_attention + "o_proj.weight": (h, query)}, SAME),
        Row(layer + "mlp.linear_fc1.layer_norm_weight", {hf_layer + "post_attention_layernorm.weight": (h,)}, SAME),
        Row(
            layer + "mlp.linear_fc1.weight",
            {hf_layer + "mlp.gate_proj.weight": (f, h), hf_layer + "mlp.up_proj.weight": (f, h)},
            GATE_UP,
        ),
        Row(layer + "mlp.linear_fc2.weight", {hf_layer + "mlp.down_proj.weight": (h, f)}, SAME),
        Row("decoder.final_layernorm.weight", {"model.norm.weight": (h,)}, SAME),
    ]
    if facts.qkv_bias:
        biases: dict[str, tuple[int, ...]] = {f"{hf_attention}{name}.bias": (size,) for name, size in qkv_sizes.items()}
        rows.append(Row(attention + "linear_qkv.bias", biases, QKV))
    if facts.qk_norm:
        head = (facts.head_dim,)
        rows += [
            Row(f"{attention}{name}_layernorm.weight", {f"{hf_attention}{name}_norm.weight": head}, SAME)
            for name in ("q", "k")
        ]
    if not facts.tied:
        rows.append(Row(HEAD, {"lm_head.weight": (vocab, h)}, VOCAB))
    return rows


def extra_state_keys(facts: ModelFacts) -> list[str]:
    """Names of the extra states as Megatron-Core's sharded objects (`/shard_<index>_<count>`), without `model.`."""
    count = facts.num_layers
    in_layers = LAYER_EXTRA_STATES + (_QUERY_KEY_EXTRA_STATES if facts.qk_norm else ())
    layers = [f"{key}/shard_{index}_{count}" for key in in_layers for index in range(count)]
    return layers + [f"{key}/shard_0_1" for key in MODEL_EXTRA_STATES]
