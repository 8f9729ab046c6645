"""The one table of names and layouts: Hugging Face on one side, Megatron's distributed checkpoint on the other.

Both directions read `mapping_table`. A row says which Hugging Face tensors make up one Megatron tensor, and a
layout, a pair of inverse functions, says how. Symbols: n query heads, g key/value heads (groups), d head
dimension, h hidden size, f feed-forward size, V vocabulary.

The Megatron names are those on disk, where the layer index is the first axis of one tensor for all layers; in
them a norm belongs to the linear layer after it, as in Transformer Engine's fused modules. Megatron-Core maps its
unfused modules onto the same names, so one checkpoint serves both. No rotary permutation is needed: Hugging Face
and Megatron (`rotary_interleaved: false`) both keep the halves of a head apart.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from nemo_minordpo.convert.facts import ModelFacts

# A table of the vocabulary is the largest tensor by far; the padded vocabulary is a multiple of this.
VOCAB_BLOCKS = 8

EMBEDDING, HEAD = "embedding.word_embeddings.weight", "output_layer.weight"
# What any version of Transformer Engine asks for when it loads a checkpoint: FP8 scales, which a converted model
# does not have. Megatron's local layers ask for the first four of them; with Transformer Engine from 1.8 on
# attention asks too, and from 1.13 on the norms. A strict load fails for one that is absent, none for one too many.
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
    """How the parts (Hugging Face) lie in the whole (Megatron), both ways; `split(join(parts)) == parts`.

    `num_blocks` cuts a whole along its rows into what the checkpoint stores as separate chunks. A reader holds a chunk
    beside what it reads it for, and a tensor-parallel rank reads every chunk that it has a part of.
    """

    join: Callable[[list[Tensor], ModelFacts], Tensor]
    split: Callable[[Tensor, ModelFacts], list[Tensor]]
    num_blocks: int = 1


def join_qkv(parts: list[Tensor], facts: ModelFacts) -> Tensor:
    """Interleave q [n*d, ...], k and v [g*d, ...] by group into [(n + 2g)*d, ...].

    Group j's rows: the n/g query heads that share key/value head j, then k_j, then v_j.
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
    """Append zero rows up to the padded vocabulary; their logit is 0 before training."""
    (table,) = parts
    num_rows = facts.padded_vocab_size - facts.vocab_size
    return torch.cat([table, table.new_zeros(num_rows, *table.shape[1:])]) if num_rows else table


def unpad_vocab(whole: Tensor, facts: ModelFacts) -> list[Tensor]:
    """The first V rows, whatever the whole was padded to."""
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
    """One tensor of a Megatron checkpoint and the Hugging Face tensors that it is made of.

    `hf` maps names to shapes; `{}` in a name is the layer index, and then the Megatron tensor has a leading layer
    axis. `megatron` is the on-disk name after the prefix `model.`.
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
        """When a forward pass meets the tensor: embedding, then layer by layer, then what stands behind the last.

        In this order a conversion goes through neighbouring parts of the files on both sides.
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
    """Every tensor of the model, once. A tied model has no output layer on either side."""
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
    """Names, as Megatron-Core writes sharded objects (`/shard_<index>_<count>`), after the prefix `model.`."""
    count = facts.num_layers
    in_layers = LAYER_EXTRA_STATES + (_QUERY_KEY_EXTRA_STATES if facts.qk_norm else ())
    layers = [f"{key}/shard_{index}_{count}" for key in in_layers for index in range(count)]
    return layers + [f"{key}/shard_0_1" for key in MODEL_EXTRA_STATES]
