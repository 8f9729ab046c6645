"""Linear layers with weights that oneDNN has laid out once, for models on CPUs that are not trained.

oneDNN and MKL lay out a weight anew for every product, which for a few dozen rows takes a third of the time.
"""

from typing import Any

import torch
from torch import Tensor, nn

_TYPES = (torch.float32, torch.bfloat16)


class PackedLinear(nn.Module):
    """``rows @ weight.T + bias`` with the weight in oneDNN's own layout."""

    def __init__(self, linear: nn.Linear, *, rows: int) -> None:
        super().__init__()
        self._weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), rows)
        self._bias = linear.bias

    def forward(self, rows: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(rows, self._weight, self._bias, "none", [], "")


def pack_linear_layers(model: Any, *, rows: int) -> None:
    """Replace the model's linear layers; weights that nothing else uses are freed one by one.

    Args:
        model: on a CPU, in eval mode.
        rows: of most products; others are correct too.
    """
    if not torch.backends.mkldnn.is_available():
        return
    layers = [
        (module, name, layer)
        for module in model.modules()
        for name, layer in module.named_children()
        if type(layer) is nn.Linear and layer.weight.dtype in _TYPES
    ]
    while layers:
        module, name, layer = layers.pop()
        setattr(module, name, PackedLinear(layer, rows=rows))
