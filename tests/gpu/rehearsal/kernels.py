"""Transformer Engine 2.9's C++ extension in Python: the functions that its linear layers, RMSNorm, delayed scaling,
rotary embedding, FusedAdam and FusedSGD call for a dense decoder in FP8 or bfloat16.

Products of FP8 or bfloat16 numbers are accumulated in float32, as tensor cores do. Requirements of the real kernels
(sides that are multiples of 16, both orientations of an FP8 tensor where it is used) are asserted.
"""

from typing import Any

import torch
from torch import Tensor

_extension: Any = None


def install(extension: Any) -> None:
    """Replace the extension's functions with this module's."""
    global _extension
    _extension = extension
    for name, function in _FUNCTIONS.items():
        if not hasattr(extension, name):
            raise ImportError(f"Transformer Engine's extension has no {name}: tests.gpu.rehearsal.kernels")
        setattr(extension, name, function)


# --- Float8 tensors with delayed scaling ------------------------------------------------------------------------------


def quantize(tensor: Tensor, quantizer: Any, output: Any = None, noop: Any = None) -> Any:
    """``x * scale``, rounded to FP8 and clamped; records the largest ``|x|`` in the quantizer's amax.

    Row-wise data is x itself, column-wise data its transpose [last dimension, all others]: FP8 products on Hopper need
    the summed dimension last in both operands.
    """
    from transformer_engine.pytorch.tensor.float8_tensor import Float8Quantizer, Float8Tensor

    if not isinstance(quantizer, Float8Quantizer):
        raise TypeError(f"delayed scaling's quantizer expected, not {type(quantizer).__name__}")
    values = tensor.detach().float()
    quantizer.amax.copy_(torch.maximum(quantizer.amax, values.abs().max()))
    kind = _fp8(quantizer.dtype)
    largest = torch.finfo(kind).max
    data = (values * quantizer.scale).clamp(-largest, largest).to(kind).view(torch.uint8)
    inverse = quantizer.scale.reciprocal().reshape(1)
    rows = data if quantizer.rowwise_usage else None
    columns = _turned(data) if quantizer.columnwise_usage else None
    if output is not None:
        output._data, output._scale_inv, output._fp8_dtype = rows, inverse, quantizer.dtype
        output._transpose, output._transpose_invalid = columns, columns is None
        return output
    parts = {
        "data": rows, "fp8_scale_inv": inverse, "fp8_dtype": quantizer.dtype, "data_transpose": columns,
        "quantizer": quantizer,
    }  # fmt: skip
    if quantizer.internal:
        return _storage()(**parts)
    return Float8Tensor(shape=tensor.shape, dtype=tensor.dtype, **parts)


def dequantize(tensor: Any, dtype: Any) -> Tensor:
    return _values(tensor).to(_torch(dtype))


def fp8_transpose(data: Tensor, dtype: Any, out: Tensor | None = None) -> Tensor:
    return _turned(data)


def bgrad_quantize(gradient: Tensor, quantizer: Any) -> list[Any]:
    """The gradient of a bias, and the gradient of the output in FP8."""
    return [gradient.flatten(0, -2).float().sum(dim=0).to(gradient.dtype), quantize(gradient, quantizer)]


def fused_amax_and_scale_update_after_reduction(
    amaxes: Tensor, histories: list[Tensor], scales: list[Tensor], algorithm: str, dtype: Any, margin: float
) -> None:
    """Delayed scaling: ``scale = largest FP8 number / amax of the history / 2^margin``; the history advances."""
    largest = torch.finfo(_fp8(dtype)).max
    for present, history, scale in zip(amaxes.split([len(s) for s in scales]), histories, scales, strict=True):
        history[0].copy_(present)
        amax = history.max(dim=0).values if algorithm == "max" else history[0].clone()
        usable = (amax > 0) & amax.isfinite()
        scale.copy_(torch.where(usable, largest / amax / 2**margin, scale))
        history.copy_(history.roll(-1, 0))
        history[0] = 0


# --- products ---------------------------------------------------------------------------------------------------------


def generic_gemm(
    a: Any, transpose_a: bool, b: Any, transpose_b: bool, out: Tensor | None, quantizer: Any, out_dtype: Any,
    bias: Tensor | None, bias_dtype: Any, gelu: bool, gelu_input: Any, is_gradient: bool, workspace: Tensor,
    workspace_size: int, accumulate: bool, split_accumulator: bool, comm_overlap: Any = None, extra_output: Any = None,
    **unused: Any,
) -> tuple[Tensor, Tensor | None, None, Any]:  # fmt: skip
    """``op(b) op(a)`` of row-major matrices, which are cuBLAS's column-major ``op(a) op(b)``.

    Forward: a = weight, transposed, b = input. Gradient of the input: a = weight, b = gradient. Gradient of the weight:
    a = input, b = gradient, transposed; it may be added to `out`, Megatron's main_grad.
    """
    if quantizer is not None or gelu or comm_overlap is not None:
        raise NotImplementedError("FP8 results, fused GELU and overlapped communication are not emulated")
    # the data with the summed dimension last in both operands
    left, right = _matrix(b, columnwise=transpose_b), _matrix(a, columnwise=not transpose_a)
    _check_operands(a, b, left, right)
    result = (left.T if transpose_b else left) @ (right.T if transpose_a else right)
    bias_gradient = None
    if bias is not None and is_gradient:
        bias_gradient = left.sum(dim=0).to(bias.dtype)
    elif bias is not None:
        result = result + bias.float()
    if not transpose_b:
        result = result.unflatten(0, _shape(b)[:-1])
    if out is None:
        result = result.to(torch.bfloat16 if out_dtype is None else _torch(out_dtype))
    else:
        result = (out.add_ if accumulate else out.copy_)(result.to(out.dtype))
    return result, bias_gradient, None, extra_output


def _check_operands(a: Any, b: Any, left: Tensor, right: Tensor) -> None:
    in_fp8 = [isinstance(tensor, _storage()) for tensor in (a, b)]
    if any(in_fp8):
        sides = [*left.shape, *right.shape]
        assert all(in_fp8), "either both operands are FP8 or neither"
        assert all(side % 16 == 0 for side in sides), f"FP8 needs sides that are multiples of 16, not {sides}"
    else:
        assert a.dtype == b.dtype, f"operands of one dtype, not {a.dtype} and {b.dtype}"


def _matrix(tensor: Any, *, columnwise: bool) -> Tensor:
    """[all dimensions but the last, the last], float32.

    Args:
        columnwise: whether the product reads an FP8 tensor's column-wise data.
    """
    if not isinstance(tensor, _storage()):
        return tensor.detach().flatten(0, -2).float()
    data = tensor._transpose if columnwise else tensor._data
    missing = data is None or (columnwise and tensor._transpose_invalid)
    assert not missing, f"{'column' if columnwise else 'row'}-wise data of an FP8 tensor is missing"
    values = data.view(_fp8(tensor._fp8_dtype)).float() * tensor._scale_inv
    return values.flatten(1).T if columnwise else values.flatten(0, -2)


# --- norm, rotary embedding, optimizer --------------------------------------------------------------------------------


def rmsnorm_fwd(
    x: Tensor, weight: Tensor, eps: float, out: Any, quantizer: Any, dtype: Any, sm_margin: int, zero_centered: bool
) -> list[Any]:
    """``y = x r w`` with ``r = (mean(x^2) + eps)^-1/2``, in FP8 if there is a quantizer; [y, None, r]."""
    assert x.dtype == weight.dtype, f"input and weight of one dtype, not {x.dtype} and {weight.dtype}"
    assert not zero_centered
    values = x.detach().float()
    inverse = (values.square().mean(dim=-1) + eps).rsqrt()
    normed = (values * inverse[:, None] * weight.detach().float()).to(_torch(dtype) if quantizer is None else x.dtype)
    return [normed if quantizer is None else quantize(normed, quantizer), None, inverse]


def rmsnorm_bwd(
    gradient: Tensor, x: Tensor, inverse: Tensor, weight: Tensor, sm_margin: int, zero_centered: bool
) -> list[Tensor]:
    """``dx = r (g - n mean(g n))`` with ``n = x r``, ``g = dy w``; ``dw = sum(dy n)``."""
    normed = x.float() * inverse[:, None]
    scaled = gradient.float() * weight.float()
    of_x = (scaled - normed * (scaled * normed).mean(dim=-1, keepdim=True)) * inverse[:, None]
    return [of_x.to(x.dtype), (gradient.float() * normed).sum(dim=0).to(weight.dtype)]


def fused_rope_forward(
    x: Tensor, freqs: Tensor, start_positions: Any, layout: Any, interleaved: bool, cu_seqlens: Any, *ranks: int
) -> Tensor:
    """``x cos + (-x2, x1) sin`` of [S, B, heads, D], the angles [S, 1, 1, D] in float32."""
    assert start_positions is None
    return fused_rope_backward(x, freqs, layout, interleaved, cu_seqlens, *ranks, sign=1.0)


def fused_rope_backward(
    x: Tensor, freqs: Tensor, layout: Any, interleaved: bool, cu_seqlens: Any, *ranks: int, sign: float = -1.0
) -> Tensor:
    """The inverse rotation."""
    assert layout == _extension.NVTE_QKV_Format.NVTE_SBHD
    assert not interleaved
    assert cu_seqlens is None
    assert freqs.dtype == torch.float32
    assert freqs.shape == (len(x), 1, 1, x.shape[-1]), f"angles {[*freqs.shape]} for {[*x.shape]}"
    values = x.float()
    first, second = values.chunk(2, dim=-1)
    return (values * freqs.cos() + sign * torch.cat([-second, first], dim=-1) * freqs.sin()).to(x.dtype)


def multi_tensor_adam(
    chunk: int, overflow: Tensor, lists: list[list[Tensor]], lr: float, beta1: float, beta2: float, eps: float,
    step: int, mode: int, bias_correction: int, weight_decay: float,
) -> None:  # fmt: skip
    """Adam (mode 0: decay added to the gradient) or AdamW (mode 1) of [gradients, weights, first, second moments]."""
    correction1, correction2 = (1 - beta1**step, 1 - beta2**step) if bias_correction else (1.0, 1.0)
    for gradient, weight, first, second in zip(*lists, strict=True):
        assert first.dtype == second.dtype == torch.float32
        of_weight, values = gradient.float(), weight.float()
        if mode == 0:
            of_weight = of_weight + weight_decay * values
        first.mul_(beta1).add_(of_weight, alpha=1 - beta1)
        second.mul_(beta2).addcmul_(of_weight, of_weight, value=1 - beta2)
        update = (first / correction1) / ((second / correction2).sqrt() + eps)
        if mode == 1:
            update = update + weight_decay * values
        weight.copy_(values - lr * update)


def multi_tensor_sgd(
    chunk: int, overflow: Tensor, lists: list[list[Tensor]], weight_decay: float, momentum: float, dampening: float,
    lr: float, nesterov: bool, first_run: bool, decay_after_momentum: bool, scale: float,
) -> None:  # fmt: skip
    """SGD without momentum of [gradients, weights, momenta]."""
    if momentum:
        raise NotImplementedError("momentum is not emulated")
    for gradient, weight, _ in zip(*lists, strict=True):
        weight.sub_(lr * (gradient.float() * scale + weight_decay * weight.float()))


def multi_tensor_l2norm(
    chunk: int, overflow: Tensor, lists: list[list[Tensor]], per_tensor: bool = False
) -> tuple[Tensor, Tensor]:
    norms = torch.stack([tensor.float().norm() for tensor in lists[0]])
    return norms.norm().reshape(1), norms if per_tensor else torch.empty(0)


def multi_tensor_scale(chunk: int, overflow: Tensor, lists: list[list[Tensor]], scale: float) -> None:
    for source, target in zip(*lists, strict=True):
        target.copy_(source * scale)


def get_num_cublas_streams() -> int:
    return 4


def _storage() -> Any:
    from transformer_engine.pytorch.tensor.storage.float8_tensor_storage import Float8TensorStorage

    return Float8TensorStorage


def _values(tensor: Any) -> Tensor:
    return tensor._data.view(_fp8(tensor._fp8_dtype)).float() * tensor._scale_inv


def _shape(tensor: Any) -> torch.Size:
    return (tensor._data if isinstance(tensor, _storage()) else tensor).shape


def _turned(data: Tensor) -> Tensor:
    """[last dimension, all others]."""
    return data.movedim(-1, 0).contiguous()


def _fp8(dtype: Any) -> torch.dtype:
    return torch.float8_e4m3fn if dtype == _extension.DType.kFloat8E4M3 else torch.float8_e5m2


def _torch(dtype: Any) -> torch.dtype:
    kinds = _extension.DType
    return {
        kinds.kFloat32: torch.float32, kinds.kBFloat16: torch.bfloat16, kinds.kFloat16: torch.float16,
        kinds.kByte: torch.uint8,
    }[dtype]  # fmt: skip


_FUNCTIONS = {
    function.__name__: function
    for function in (
        quantize, dequantize, fp8_transpose, bgrad_quantize, fused_amax_and_scale_update_after_reduction, generic_gemm,
        rmsnorm_fwd, rmsnorm_bwd, fused_rope_forward, fused_rope_backward, multi_tensor_adam, multi_tensor_sgd,
        multi_tensor_l2norm, multi_tensor_scale, get_num_cublas_streams,
    )
}  # fmt: skip
