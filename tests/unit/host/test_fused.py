"""The CPU kernels against the compositions that they replace, values and gradients, in float64."""

import pytest
import torch
from torch.nn.functional import silu

from nemo_minordpo.host.fused import RMSNorm, rotate, swiglu


def random(*shape):
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


def assert_same(ours, plain, *inputs):
    """Compare values, and gradients under random weights."""
    found, expected = ours(*inputs), plain(*inputs)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    weights = torch.randn_like(expected)
    gradients, by_torch = (torch.autograd.grad((value * weights).sum(), inputs) for value in (found, expected))
    for one, other in zip(gradients, by_torch, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-11)
    assert all(gradient.abs().max() > 0 for gradient in gradients)


@pytest.mark.parametrize("shape", [(7, 1, 12), (3, 12)])
def test_rms_norm(shape):
    norm = RMSNorm(shape[-1], eps=1e-2, dtype=torch.float64)
    torch.nn.init.normal_(norm.weight)
    plain = torch.nn.RMSNorm(shape[-1], eps=1e-2, dtype=torch.float64)
    plain.weight = norm.weight
    x = random(*shape)
    assert_same(lambda x, _: norm(x), lambda x, _: plain(x), x, norm.weight)


def test_rms_norm_of_bfloat16_is_rounded_once():
    x, norm = 3 * torch.randn(50, 896, dtype=torch.bfloat16), RMSNorm(896, eps=1e-6, dtype=torch.bfloat16)
    torch.nn.init.normal_(norm.weight)
    wide = x.double()
    inverse = (wide.square().mean(dim=1, keepdim=True) + 1e-6).rsqrt()
    exact, found = wide * inverse * norm.weight.double(), norm(x)
    assert found.dtype == torch.bfloat16
    one_rounding = torch.finfo(torch.bfloat16).eps / 2 * exact.abs() + 1e-6
    assert ((found.double() - exact).abs() <= one_rounding).all()
    # the control: a norm in bfloat16
    rounded = x * x.square().mean(dim=1, keepdim=True).add(1e-6).rsqrt() * norm.weight
    assert ((rounded.double() - exact).abs() > one_rounding).any()


def test_gradients_of_rms_norm_in_bfloat16():
    x, norm = torch.randn(50, 96, dtype=torch.bfloat16, requires_grad=True), RMSNorm(96, eps=1e-6, dtype=torch.bfloat16)
    torch.nn.init.normal_(norm.weight)
    grad = torch.randn(50, 96, dtype=torch.bfloat16)
    found = torch.autograd.grad(norm(x), (x, norm.weight), grad)
    inputs = [x.detach().double().requires_grad_(), norm.weight.detach().double().requires_grad_()]
    plain = torch.nn.functional.rms_norm(inputs[0], (96,), inputs[1], eps=1e-6)
    exact = torch.autograd.grad(plain, inputs, grad.double())
    for one, other in zip(found, exact, strict=True):
        assert one.dtype == torch.bfloat16
        error = (one.double() - other).square().mean().sqrt() / other.square().mean().sqrt()
        assert error < torch.finfo(torch.bfloat16).eps  # one rounding is half of it at most


def test_a_frozen_norm_passes_gradients_through():
    norm = RMSNorm(4, eps=1e-5).requires_grad_(False)
    x = torch.randn(3, 4, requires_grad=True)
    norm(x).sum().backward()
    assert norm.weight.grad is None
    assert x.grad is not None


def test_swiglu():
    assert_same(swiglu, lambda x: silu(x[..., :5]) * x[..., 5:], random(4, 1, 10))


def test_rotation():
    angles = torch.randn(6, 1, 1, 4, dtype=torch.float64).repeat(1, 1, 1, 2)

    def plain(x):
        first, second = x[..., :4], x[..., 4:]
        return x * angles.cos() + torch.cat([-second, first], dim=-1) * angles.sin()

    assert_same(lambda x: rotate(x, angles), plain, random(6, 1, 3, 8))


def test_rotation_preserves_lengths_and_can_be_undone():
    angles = torch.randn(6, 1, 1, 4).repeat(1, 1, 1, 2)
    x = torch.randn(6, 1, 3, 8)
    turned = rotate(x, angles)
    torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1))
    torch.testing.assert_close(rotate(turned, -angles), x)
    assert (turned - x).abs().max() > 0.1
