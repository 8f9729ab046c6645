"""Layer norms for machines without Transformer Engine."""

from typing import Any

import torch
from megatron.core.transformer.transformer_config import TransformerConfig

from nemo_minordpo.errors import UserError
from nemo_minordpo.host.fused import RMSNorm, ZeroCenteredRMSNorm


class TorchNorm:
    """torch's LayerNorm or our RMSNorm, like Megatron-Core's WrappedTorchNorm (0.10 - 0.12), plus sequence parallelism.

    Megatron rejects torch's norms under sequence parallelism because they do not mark their weights as replicated over
    parts of the sequence. Once marked, their gradients are summed over the ranks like those of the fused norms.
    """

    def __new__(cls, config: TransformerConfig, hidden_size: int, eps: float = 1e-5, **unused: Any) -> torch.nn.Module:
        """Signature as Megatron-Core calls it."""
        norms: dict[Any, Any] = {
            ("LayerNorm", False): torch.nn.LayerNorm,
            ("RMSNorm", False): RMSNorm,
            ("RMSNorm", True): ZeroCenteredRMSNorm,
        }
        kind = (config.normalization, config.layernorm_zero_centered_gamma)
        if kind not in norms:
            raise UserError(
                f"model.layernorm_zero_centered_gamma with model.normalization={kind[0]} needs Transformer Engine"
            )
        norm = norms[kind](hidden_size, eps=eps)
        for parameter in norm.parameters():
            parameter.sequence_parallel = config.sequence_parallel
        return norm
