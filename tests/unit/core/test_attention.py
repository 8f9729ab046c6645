"""Attention over packed pairs against a softmax with may_attend's dense mask, and against separate sequences."""

import math

import numpy as np
import pytest
import torch

from nemo_minordpo.core import attention
from nemo_minordpo.core.attention import KeyValueCache, causal_attention, pair_attention
from nemo_minordpo.core.pair_packing import may_attend

SIZE = 8
# segments, places in the row
ROWS = {
    "one pair": ([[0, 3, 7, 12]], 12),
    "padding": ([[0, 3, 7, 12]], 17),
    "several pairs and padding": ([[0, 4, 9, 11], [11, 12, 14, 20], [20, 23, 24, 25]], 32),
    "no chosen tail": ([[0, 3, 3, 6], [6, 8, 9, 11]], 12),
    "no rejected tail": ([[0, 3, 6, 6], [6, 8, 9, 11]], 12),
    "no tail": ([[0, 5, 5, 5], [5, 6, 6, 6]], 9),
    "long pairs": ([[0, 40, 90, 150], [150, 260, 280, 300]], 310),
}


def tensors(length, *, heads=2, groups=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(1, number, length, SIZE, generator=generator, dtype=torch.float64, requires_grad=True)
        for number in (heads, groups, groups)
    ]


def naive(query, key, value, mask, *, scale=None):
    """Materialises all scores; the heads of a group share keys and values."""
    repeats = query.shape[1] // key.shape[1]
    key, value = (tensor.repeat_interleave(repeats, dim=1) for tensor in (key, value))
    scores = query @ key.transpose(2, 3) * (scale or 1 / math.sqrt(query.shape[3]))
    return scores.masked_fill(~torch.from_numpy(mask), -torch.inf).softmax(dim=3) @ value


def gradients(attended, leaves, seed=1):
    weights = torch.randn(attended.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.autograd.grad((attended * weights).sum(), leaves)


def assert_close(ours, expected):
    torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize(("heads", "groups", "scale"), [(2, 2, None), (4, 2, 0.7), (3, 1, None)])
def test_same_as_the_dense_mask_in_value_and_gradient(name, heads, groups, scale):
    segments, length = ROWS[name]
    used = segments[-1][-1]
    leaves = tensors(length, heads=heads, groups=groups)
    ours = pair_attention(*leaves, torch.tensor(segments), scale=scale)
    assert ours.shape == (1, heads, length, SIZE)
    mask = may_attend(np.asarray(segments), used)
    expected = naive(*(leaf[:, :, :used] for leaf in leaves), mask, scale=scale)
    assert_close(ours[:, :, :used], expected)
    for grad, expected_grad in zip(gradients(ours[:, :, :used], leaves), gradients(expected, leaves), strict=True):
        assert_close(grad, expected_grad)


@pytest.mark.parametrize("name", ROWS)
def test_same_as_separate_sequences(name):
    segments, length = ROWS[name]
    leaves = tensors(length, heads=4)
    ours = pair_attention(*leaves, torch.tensor(segments), scale=None)
    for start, branch, chosen_end, end in segments:
        for tail in (range(branch, chosen_end), range(chosen_end, end)):
            places = [*range(start, branch), *tail]
            alone = causal_attention(*(leaf[:, :, places] for leaf in leaves), scale=None)
            assert_close(ours[:, :, places], alone)


@pytest.mark.parametrize("name", ["one pair", "several pairs and padding"])
def test_a_rejected_tail_that_saw_the_chosen_one_would_be_noticed(name):
    segments, length = ROWS[name]
    leaves = tensors(length)
    ours = pair_attention(*leaves, torch.tensor(segments), scale=None)
    for start, branch, chosen_end, end in segments:
        here = [leaf[:, :, start:end] for leaf in leaves]
        difference = (ours[:, :, start:end] - naive(*here, np.tri(end - start, dtype=bool))).abs().amax(dim=(0, 1, 3))
        assert (difference[: chosen_end - start] < 1e-10).all()
        if chosen_end > branch:
            assert (difference[chosen_end - start :] > 1e-3).all()


def test_padding_has_no_influence_and_no_gradient():
    segments, length = ROWS["several pairs and padding"]
    used = segments[-1][-1]
    leaves = tensors(length)
    clean = pair_attention(*leaves, torch.tensor(segments), scale=None)
    clean_grads = gradients(clean[:, :, :used], leaves)
    with torch.no_grad():
        for leaf in leaves:
            leaf[:, :, used:] = torch.nan
    spoilt = pair_attention(*leaves, torch.tensor(segments), scale=None)
    assert torch.equal(spoilt[:, :, :used], clean[:, :, :used])
    for grad, clean_grad in zip(gradients(spoilt[:, :, :used], leaves), clean_grads, strict=True):
        assert torch.equal(grad[:, :, :used], clean_grad[:, :, :used])
        assert not grad[:, :, used:].any()


def test_a_row_without_pairs():
    leaves = tensors(5, heads=4)
    attended = pair_attention(*leaves, torch.zeros(0, 4, dtype=torch.int64), scale=None)
    assert attended.shape == (1, 4, 5, SIZE)
    assert attended.isfinite().all()
    attended.sum().backward()
    assert not leaves[0].grad.any()


def test_gradients_of_strided_rows():
    """Megatron's queries, keys and values are slices of one projection, [S, B, groups, heads + 2, D]."""
    segments, length = ROWS["several pairs and padding"]
    mixed = torch.randn(length, 1, 2, 4, SIZE, dtype=torch.float64, requires_grad=True)
    strided = [part.flatten(2, 3).permute(1, 2, 0, 3) for part in mixed.split([2, 1, 1], dim=3)]
    copied = [part.detach().contiguous().requires_grad_() for part in strided]
    ours, expected = (pair_attention(*leaves, torch.tensor(segments), scale=None) for leaves in (strided, copied))
    assert torch.equal(ours, expected)
    for grad, expected_grad in zip(gradients(ours, strided), gradients(expected, copied), strict=True):
        assert torch.equal(grad, expected_grad)


@pytest.mark.parametrize(("heads", "groups", "scale"), [(2, 2, None), (4, 2, 0.3)])
@pytest.mark.parametrize("padding", [0, 3])
def test_generating_token_by_token_is_the_same_as_all_at_once(heads, groups, scale, padding):
    """Sequences of different lengths in two layers, against causal attention over each whole sequence."""
    prompts, new_tokens = [3, 1, 5], 4
    layers = [
        [
            tensors(length + new_tokens, heads=heads, groups=groups, seed=10 * layer + n)
            for n, length in enumerate(prompts)
        ]
        for layer in (1, 2)
    ]
    ends = np.cumsum(prompts)
    cache = KeyValueCache(
        torch.from_numpy(np.stack([ends - prompts, ends, ends, ends], axis=1)), max_new_tokens=new_tokens
    )

    def row(layer, part, places):
        found = [sequence[part][:, :, place] for sequence, place in zip(layers[layer], places, strict=True)]
        joined = torch.cat([one if one.ndim == 4 else one[:, :, None] for one in found], dim=2)
        return torch.nn.functional.pad(joined, (0, 0, 0, padding), value=7.0)

    written = [[[], [], []], [[], [], []]]
    for number in range(new_tokens + 1):
        places = [slice(0, length) for length in prompts] if number == 0 else [n + number - 1 for n in prompts]
        for layer in (0, 1):
            attended = cache.attend(layer + 1, *(row(layer, part, places) for part in range(3)), scale=scale)
            assert attended.shape[2] == (sum(prompts) if number == 0 else 3) + padding
            starts = [*(ends - prompts), ends[-1]] if number == 0 else range(4)
            for n in range(3):
                written[layer][n].append(attended[:, :, starts[n] : starts[n + 1]])
        cache.advance()
    for layer in (0, 1):
        for n, (query, key, value) in enumerate(layers[layer]):
            expected = causal_attention(query, key, value, scale=scale)
            torch.testing.assert_close(torch.cat(written[layer][n], dim=2), expected, rtol=1e-5, atol=1e-6)


def test_cudnn_is_never_chosen(monkeypatch):
    """cuDNN builds plans for a single length. The other kernels stay allowed, and cuDNN stays allowed elsewhere."""
    allowed = []

    def attend(*tensors, **options):
        backends = torch.backends.cuda
        allowed.append(
            (backends.cudnn_sdp_enabled(), backends.flash_sdp_enabled(), backends.mem_efficient_sdp_enabled())
        )
        return torch.nn.functional.scaled_dot_product_attention(*tensors, **options)

    monkeypatch.setattr(attention, "scaled_dot_product_attention", attend)
    row = [leaf.detach() for leaf in tensors(6, heads=4)]
    causal_attention(*row, scale=None)
    cache = KeyValueCache(torch.tensor([[0, 2, 2, 2], [2, 6, 6, 6]]), max_new_tokens=1)
    cache.attend(1, *row, scale=None)
    cache.advance()
    cache.attend(1, *(part[:, :, :2] for part in row), scale=None)
    assert allowed == [(False, True, True)] * 2
    assert torch.backends.cuda.cudnn_sdp_enabled()
