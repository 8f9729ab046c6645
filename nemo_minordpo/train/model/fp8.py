"""FP8 scales: computed before anything is evaluated, and changed by training only.

With delayed scaling, Transformer Engine multiplies a tensor by a scale before rounding it to FP8; the scale comes from
the tensor's largest values (amax) in previous steps. This causes two problems for preference losses, whose kinks are
where policy and reference agree:

- Scales start at 1 and only change in steps with gradients. A reference evaluated before the first step is rounded
  with scale 1 everywhere, which leaves weights of 0.02 one or two bits; and the first gradients underflow.
- Evaluation without gradients changes no scale, but adds its largest values to the history, from which the next
  training step computes its scales: validation and a live reference would affect training.

From the source of Transformer Engine 2.9 (`pytorch/quantization.py`, `pytorch/module/base.py`); 1.8 has the same two
methods.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from nemo_minordpo.train.data.dataset import StepBatch

# A layer's scale is right one pass after the scales of the layers that produce its input (or, backward, its gradient).
# The residual stream is not in FP8, so such chains have only two layers: in and out of attention, or of the MLP.
_PASSES = 3


def find_scales(host: Any, batch: StepBatch) -> None:
    """Set the scales by forward and backward passes over some pairs, without changing the weights.

    Policy and reference start with these scales, which depend only on the weights, the pairs and their packing.

    Args:
        host: hosts.protocol.Host; its gradients are discarded.
        batch: the pairs.
    """
    own = batch.with_references([None] * len(batch.micro_batches))
    for _ in range(_PASSES):
        host.begin_step(rate=0.0, seed=1)
        host.model.get_loss_and_metrics(own, forward_only=False)
        host.reduce_and_clip(max_norm=math.inf)


@contextmanager
def scales_kept(model: Any) -> Iterator[None]:
    """Restore the scales and their history on exit, so that evaluation does not affect them."""
    layers = _layers(model)
    saved = [layer.get_fp8_meta_tensors() for layer in layers]
    try:
        yield
    finally:
        for layer, state in zip(layers, saved, strict=True):
            layer.reset_fp8_meta_tensors(state)


def move_scales(model: Any) -> None:
    """Multiply the scales by 3/4, within :func:`scales_kept`, which changes the rounding as training does."""
    for layer in _layers(model):
        if layer.get_fp8_meta_tensors() is not None:
            layer.fp8_meta["scaling_fwd"].scale.mul_(0.75)


def _layers(model: Any) -> list[Any]:
    """The layers that have scales; none without FP8.

    Megatron's distributed optimizer makes the model a plain list, which the Lightning module's own `modules()` does not
    include.

    Raises:
        RuntimeError: the model computes in FP8 but has no such layers.
    """
    parts = model.get_model_module_list()
    layers = [module for part in parts for module in part.modules() if hasattr(module, "reset_fp8_meta_tensors")]
    if model.uses_fp8 and not layers:
        raise RuntimeError(
            "model.fp8=true, but none of the model's layers has FP8 scales like Transformer Engine's layers; "
            "set precision=bf16 to train without FP8"
        )
    return layers
