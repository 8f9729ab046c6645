"""Megatron's GPT model on rows of packed pairs, or on sequences that are generated token by token."""

import torch
from megatron.core.models.gpt import GPTModel as MCoreGPTModel
from torch import Tensor

from nemo_minordpo.core.attention import KeyValueCache


class PackedPairsGPTModel(MCoreGPTModel):
    """Megatron's GPT model on a row of packed pairs, without its head.

    Megatron derives rotary embeddings from the length of the row, and has one causal mask per row; here, positions
    restart in every pair and in its rejected tail. The loss applies the head itself, to response positions only.
    """

    def forward(  # type: ignore[override]
        self, tokens: Tensor, positions: Tensor, segments: Tensor | KeyValueCache
    ) -> Tensor:
        """Hidden states [S, 1, H] ([S / TP, 1, H] under sequence parallelism) of this pipeline stage.

        Args:
            tokens, positions: [1, S].
            segments: [m, 4], as core.pair_packing lays pairs out, or the cache of sequences that are being generated;
                passed to the attention as the mask, and so also through activation recomputation.
        """
        embedded = None
        if self.pre_process:
            embedded = self.embedding(input_ids=tokens, position_ids=positions)
            if torch.is_grad_enabled():
                # Recomputed layers only propagate gradients if their input requires one; a frozen embedding does not.
                embedded.requires_grad_()
        rotary = None
        if self.position_embedding_type == "rope":
            rotary = self.rotary_pos_emb(self.max_sequence_length)[positions[0]]
        return self.decoder(hidden_states=embedded, attention_mask=segments, rotary_pos_emb=rotary)
