"""The scales of FP8: found before anything is evaluated, and changed by training alone.

With delayed scaling Transformer Engine multiplies a tensor with a scale before it rounds it to FP8; the scale follows
from the largest values (amax) that the tensor had in the steps before. From that come two faults that preference
losses, whose kinks lie where policy and reference agree, do not forgive:

- Scales start at 1 and move with steps that have gradients only. A reference that is evaluated before the first step
  is rounded with 1 everywhere, under which weights of 0.02 keep one or two bits; the first gradients underflow.
- What is evaluated without gradients moves no scale, but leaves its largest values in the history, from which the next
  training step takes its scales: validation, and a live reference, would change the training.

Read in Transformer Engine 2.9 (`pytorch/quantization.py`, `pytorch/module/base.py`); 1.8 has the same two methods.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from nemo_minordpo.train.data.dataset import StepBatch

# A layer's scale is right one pass after those that it gets its input, or in the backward pass its gradient, from. The
# residual stream is not in FP8, so that a chain of layers is two long: in and out of attention, or of the MLP.
_PASSES = 3


def in_use(model: Any) -> bool:
    """Whether the model's matrix products are FP8's."""
    return bool(model.cfg.get("fp8"))


def find_scales(model: Any, optimizer: Any, batch: StepBatch) -> None:
    """Set the scales by forward and backward passes over some pairs, under weights that stay as they are.

    Policy and reference start from these scales: with the weights, they depend on the pairs and the packing alone.

    Args:
        model: MegatronGPTMinorDPOModel, set up.
        optimizer: whose gradients are thrown away.
        batch: the pairs.
    """
    own = batch.with_references([None] * len(batch.micro_batches))
    for _ in range(_PASSES):
        optimizer.zero_grad()
        model.prepare_for_training_step()
        model.get_loss_and_metrics(own, forward_only=False)
        model.finish_training_step()
    optimizer.zero_grad()


@contextmanager
def scales_kept(model: Any) -> Iterator[None]:
    """What is evaluated within leaves the scales, and the history that they follow from, as they were."""
    layers = _layers(model)
    kept = [layer.get_fp8_meta_tensors() for layer in layers]
    try:
        yield
    finally:
        for layer, state in zip(layers, kept, strict=True):
            layer.reset_fp8_meta_tensors(state)


def move_scales(model: Any) -> None:
    """Multiply them with 3/4, within :func:`scales_kept`: other roundings, as when training has moved the scales."""
    for layer in _layers(model):
        if layer.get_fp8_meta_tensors() is not None:
            layer.fp8_meta["scaling_fwd"].scale.mul_(0.75)


def _layers(model: Any) -> list[Any]:
    """The layers that have scales; there are some exactly where products are FP8's.

    Megatron's distributed optimizer makes the model a plain list, of which the Lightning module that holds it knows
    nothing: its own `modules()` has none of the layers then.

    Raises:
        RuntimeError: none was found, though the model computes in FP8.
    """
    parts = model.get_model_module_list()
    layers = [module for part in parts for module in part.modules() if hasattr(module, "reset_fp8_meta_tensors")]
    if in_use(model) and not layers:
        raise RuntimeError(
            "model.fp8=true, but none of the model's layers has scales as Transformer Engine's layers do; "
            "precision=bf16 trains without FP8"
        )
    return layers
