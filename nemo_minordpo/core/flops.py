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
    """Sizes of a decoder.

    ffn_hidden_size: of the MLP, or of one expert in a mixture of experts.
    gated: the MLP multiplies two projections (SwiGLU).
    num_experts, experts_per_token: experts in each layer, and how many of them compute a token; 1 without a mixture.
    """

    num_layers: int
    hidden_size: int
    ffn_hidden_size: int
    num_heads: int
    num_query_groups: int
    head_size: int
    vocab_size: int
    gated: bool
    num_experts: int = 1
    experts_per_token: int = 1

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
    def attention_weights(self) -> int:
        """Weights of a layer's four linear layers in attention."""
        projected, grouped = self.num_heads * self.head_size, self.num_query_groups * self.head_size
        return self.hidden_size * (2 * projected + 2 * grouped)

    @property
    def expert_weights(self) -> int:
        """Weights of an MLP or of one expert: two linear layers, three if gated."""
        return (3 if self.gated else 2) * self.hidden_size * self.ffn_hidden_size

    @property
    def weights_of_layer(self) -> int:
        """Weights of a layer's linear layers, with all experts and their router."""
        router = self.num_experts * self.hidden_size if self.num_experts > 1 else 0
        return self.attention_weights + self.num_experts * self.expert_weights + router

    @property
    def active_weights_of_layer(self) -> int:
        """Weights of a layer's linear layers that a token is multiplied by, without a mixture's router."""
        return self.attention_weights + self.experts_per_token * self.expert_weights

    def _linear_flops(self, work: StepWork) -> int:
        layers = self.num_layers * 2 * self.active_weights_of_layer * work.unique_tokens
        return layers + 2 * self.hidden_size * self.vocab_size * work.targets

    def _attention_flops(self, work: StepWork) -> int:
        return self.num_layers * 4 * self.num_heads * self.head_size * work.attended
