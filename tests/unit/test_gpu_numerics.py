"""The numerical checks of `make gpu-check` must fail on a device that computes nothing, or the wrong thing."""

import pytest
import torch

from tests.gpu import numerics


def _nothing(*inputs):
    """The output of a kernel that does nothing: zeros, with zero gradients."""
    return sum(tensor.sum() for tensor in inputs) * 0


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_head_that_does_nothing_fails_even_if_the_naive_head_does_nothing_too(monkeypatch, tmp_path, dtype):
    naive = numerics._naive_head

    def broken_device(hidden, weight, targets):
        if hidden.dtype == torch.float64:
            return naive(hidden, weight, targets)
        return torch.zeros(len(targets)) + _nothing(hidden, weight)

    def ours(*inputs, group):
        return broken_device(*inputs)

    monkeypatch.setattr(numerics, "_naive_head", broken_device)
    monkeypatch.setattr(numerics, "vocab_parallel_log_probs", ours)
    with pytest.raises(AssertionError, match=r"nats per token: .* \(bound"):
        numerics.log_probs(tmp_path, dtype)


def test_attention_that_does_nothing_fails_even_if_the_naive_one_does_nothing_too(monkeypatch, tmp_path):
    dense = numerics._dense_attention

    def broken_device(query, key, value, **more):
        return dense(query, key, value, **more) if query.dtype == torch.float64 else query * 0 + _nothing(key, value)

    def ours(query, key, value, segments, *, scale):
        return query * 0 + _nothing(key, value)

    monkeypatch.setattr(numerics, "_dense_attention", broken_device)
    monkeypatch.setattr(numerics, "pair_attention", ours)
    with pytest.raises(AssertionError, match=r"forward: .* \(bound"):
        numerics.attention(tmp_path, "float32")


def test_losses_with_the_sign_flipped_fail(monkeypatch, tmp_path):
    right, calls = numerics._loss, []

    def flipped(*inputs):
        calls.append(inputs)
        parts = right(*inputs)
        return parts if len(calls) % 2 else [-part for part in parts]  # exact, found, exact, found

    monkeypatch.setattr(numerics, "_loss", flipped)
    with pytest.raises(AssertionError, match="losses, float64"):
        numerics.losses(tmp_path)
