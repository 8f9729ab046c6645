"""Megatron-Core's linear layers with FP8 and delayed scaling as in Transformer Engine, emulated in float32 on a CPU.

Inputs and weights are rounded to E4M3 and gradients to E5M2, with scales from earlier steps. Scale and history are
read, set and saved under the names of Transformer Engine 2.9, whose own layers need a GPU. As there, they advance with
backward passes and with forward passes that have gradients, and every pass writes to the history.
"""

import io
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace

import pytest
import torch
from megatron.core.models.gpt import gpt_layer_specs
from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear

HISTORY = 16  # steps


class Scaling(SimpleNamespace):
    """scale: [tensors]; amax_history: [HISTORY, tensors], current step first."""

    def __init__(self, tensors: int, dtype: torch.dtype) -> None:
        super().__init__(
            scale=torch.ones(tensors), amax_history=torch.zeros(HISTORY, tensors),
            dtype=dtype, largest=torch.finfo(dtype).max,
        )  # fmt: skip

    def rounded(self, values: torch.Tensor, tensor: int) -> torch.Tensor:
        amax, scale = values.detach().abs().max(), self.scale[tensor].clone()
        self.amax_history[0, tensor] = torch.maximum(self.amax_history[0, tensor], amax)
        return (values * scale).clamp(-self.largest, self.largest).to(self.dtype).to(values.dtype) / scale

    def update(self) -> None:
        amax = self.amax_history.max(dim=0).values
        self.scale.copy_(torch.where(amax > 0, self.largest / amax, self.scale))
        self.amax_history.copy_(self.amax_history.roll(-1, 0))
        self.amax_history[0] = 0


class Rounded(torch.autograd.Function):
    """Round an input or weight; pass its gradient through."""

    @staticmethod
    def forward(ctx, values, scaling, tensor):
        return scaling.rounded(values, tensor)

    @staticmethod
    def backward(ctx, gradient):
        return gradient, None, None


class GradientRounded(torch.autograd.Function):
    """Pass the output through; round its gradient."""

    @staticmethod
    def forward(ctx, values, scaling):
        ctx.scaling = scaling
        return values.view_as(values)

    @staticmethod
    def backward(ctx, gradient):
        rounded = ctx.scaling.rounded(gradient, 0)
        ctx.scaling.update()
        return rounded, None


class DelayedScaling:
    """Shared by both kinds of layers; must precede them in the bases."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.fp8_meta = {}  # until the first pass, as in Transformer Engine

    @property
    def _forward_impl(self):
        return self._rounded

    @_forward_impl.setter
    def _forward_impl(self, product):
        self.__dict__["product"] = product

    def begin(self):
        self.fp8_meta |= {
            "scaling_fwd": Scaling(2, torch.float8_e4m3fn),
            "scaling_bwd": Scaling(1, torch.float8_e5m2),
        }

    def _rounded(self, *, input, weight, **more):
        if not self.fp8_meta:
            self.begin()
        forward = self.fp8_meta["scaling_fwd"]
        output = self.__dict__["product"](
            input=Rounded.apply(input, forward, 0), weight=Rounded.apply(weight, forward, 1), **more
        )
        if torch.is_grad_enabled():
            forward.update()
        return GradientRounded.apply(output, self.fp8_meta["scaling_bwd"])

    def get_fp8_meta_tensors(self):
        if not self.fp8_meta:
            return None
        return {key: [meta.scale.clone(), meta.amax_history.clone()] for key, meta in self.fp8_meta.items()}

    def reset_fp8_meta_tensors(self, tensors=None):
        for key, meta in self.fp8_meta.items():
            scale, history = tensors[key] if tensors else (torch.ones(()), torch.zeros(()))
            meta.scale.copy_(scale)
            meta.amax_history.copy_(history)

    def get_extra_state(self):
        if not self.fp8_meta:
            return torch.empty(0, dtype=torch.uint8)
        file = io.BytesIO()
        torch.save(self.get_fp8_meta_tensors(), file)
        return torch.frombuffer(bytearray(file.getvalue()), dtype=torch.uint8)

    def set_extra_state(self, state):
        if state is not None and len(state):
            self.begin()
            self.reset_fp8_meta_tensors(torch.load(io.BytesIO(state.numpy().tobytes())))


class ScaledColumnParallelLinear(DelayedScaling, ColumnParallelLinear):
    pass


class ScaledRowParallelLinear(DelayedScaling, RowParallelLinear):
    pass


@contextmanager
def delayed_scaling(without: str | None) -> Iterator[None]:
    """Models built in this context have these layers, and this project treats them as FP8 layers.

    Args:
        without: name of a function in fp8.py to disable, to show what it is for; None = disable nothing.
    """
    from nemo_minordpo.train import reference
    from nemo_minordpo.train.model import fp8
    from nemo_minordpo.train.model.pair_model import PairModel

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gpt_layer_specs, "ColumnParallelLinear", ScaledColumnParallelLinear)
        patch.setattr(gpt_layer_specs, "RowParallelLinear", ScaledRowParallelLinear)
        patch.setattr(PairModel, "uses_fp8", True)
        if without == "find_scales":
            patch.setattr(fp8, "find_scales", lambda *args: None)
        if without == "scales_kept":
            patch.setattr(fp8, "scales_kept", lambda model: nullcontext())
            patch.setattr(reference, "move_scales", lambda model: None)  # the other patch undoes this
        yield
