"""What a step costs in floating-point operations, and what is made of it per second."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class StepWork:
    """Counts of a step, over all ranks.

    pairs: preference pairs.
    unique_tokens: tokens that the model computes: what a pair shares counts once.
    equivalent_tokens: tokens of both sequences of every pair, as a trainer without sharing computes them.
    attended: (query, key) pairs of places that attention needs.
    targets: log-probabilities of response tokens that the head gives.
    places: places of the rows, padding included.
    """

    pairs: int
    unique_tokens: int
    equivalent_tokens: int
    attended: int
    targets: int
    places: int


@dataclass(frozen=True, kw_only=True)
class ModelSize:
    """Sizes of a decoder; ``gated``: its MLP multiplies two projections (SwiGLU)."""

    num_layers: int
    hidden_size: int
    ffn_hidden_size: int
    num_heads: int
    num_query_groups: int
    head_size: int
    vocab_size: int
    gated: bool

    def forward_flops(self, work: StepWork) -> int:
        """Floating-point operations of a forward pass; a multiplication and an addition are two.

        Linear layers ``2 * weights`` a token, attention ``4 * heads * head_size`` a (query, key) pair, the head
        ``2 * hidden_size * vocab_size`` a target. Padding and what is computed a second time do not count.
        """
        return self._linear_flops(work) + self._attention_flops(work)

    def training_flops(self, work: StepWork, *, frozen: bool = False) -> int:
        """Forward and backward: three times the forward pass; linear layers twice where they are ``frozen`` (LoRA)."""
        return (2 if frozen else 3) * self._linear_flops(work) + 3 * self._attention_flops(work)

    @property
    def weights_of_layer(self) -> int:
        """Of its linear layers: attention's four and the MLP's two, or three where it is gated."""
        hidden, projected = self.hidden_size, self.num_heads * self.head_size
        attention_weights = hidden * (2 * projected + 2 * self.num_query_groups * self.head_size)
        return attention_weights + (3 if self.gated else 2) * hidden * self.ffn_hidden_size

    def _linear_flops(self, work: StepWork) -> int:
        layers = self.num_layers * 2 * self.weights_of_layer * work.unique_tokens
        return layers + 2 * self.hidden_size * self.vocab_size * work.targets

    def _attention_flops(self, work: StepWork) -> int:
        return self.num_layers * 4 * self.num_heads * self.head_size * work.attended
