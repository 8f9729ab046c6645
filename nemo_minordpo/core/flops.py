"""Floating-point operations of a training step."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class StepWork:
    """Counts for one step, over all ranks.

    pairs: preference pairs.
    unique_tokens: tokens that the model computes; tokens shared within a pair count once.
    equivalent_tokens: tokens of both sequences of every pair, as a trainer without sharing would compute them.
    attended: (query, key) pairs that attention needs.
    targets: response tokens for which the head computes log-probabilities.
    places: places in the rows, including padding.
    """

    pairs: int
    unique_tokens: int
    equivalent_tokens: int
    attended: int
    targets: int
    places: int


@dataclass(frozen=True, kw_only=True)
class ModelSize:
    """Sizes of a decoder; ``gated``: the MLP multiplies two projections (SwiGLU)."""

    num_layers: int
    hidden_size: int
    ffn_hidden_size: int
    num_heads: int
    num_query_groups: int
    head_size: int
    vocab_size: int
    gated: bool

    def forward_flops(self, work: StepWork) -> int:
        """Floating-point operations of a forward pass; a multiply-add counts as two.

        Linear layers: ``2 * weights`` per token. Attention: ``4 * heads * head_size`` per (query, key) pair. Head:
        ``2 * hidden_size * vocab_size`` per target. Padding and recomputation do not count.
        """
        return self._linear_flops(work) + self._attention_flops(work)

    def training_flops(self, work: StepWork, *, frozen: bool = False) -> int:
        """Forward and backward: three times the forward pass, but only twice for ``frozen`` linear layers (LoRA)."""
        return (2 if frozen else 3) * self._linear_flops(work) + 3 * self._attention_flops(work)

    @property
    def weights_of_layer(self) -> int:
        """Weights of a layer's linear layers: four in attention, two in the MLP (three if gated)."""
        hidden, projected = self.hidden_size, self.num_heads * self.head_size
        attention_weights = hidden * (2 * projected + 2 * self.num_query_groups * self.head_size)
        return attention_weights + (3 if self.gated else 2) * hidden * self.ffn_hidden_size

    def _linear_flops(self, work: StepWork) -> int:
        layers = self.num_layers * 2 * self.weights_of_layer * work.unique_tokens
        return layers + 2 * self.hidden_size * self.vocab_size * work.targets

    def _attention_flops(self, work: StepWork) -> int:
        return self.num_layers * 4 * self.num_heads * self.head_size * work.attended
