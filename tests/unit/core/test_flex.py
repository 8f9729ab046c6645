"""FlexAttention's mask and block lists against those that torch derives from the same mask, and its values on a CPU."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._dynamo.utils import counters
from torch.nn.attention.flex_attention import create_block_mask, create_mask

from nemo_minordpo.core import flex
from nemo_minordpo.core.attention import pair_attention
from nemo_minordpo.core.flex import BLOCK_SIZE, blocks, row_attention
from nemo_minordpo.core.pair_packing import may_attend
from tests.gpu.rehearsal.attention import flex_attention, visits

LISTS = ("kv", "full_kv", "q", "full_q")


def structure(*lengths):
    """Structure of pairs with lengths (shared, chosen tail, rejected tail)."""
    ends = np.cumsum(np.asarray(lengths, dtype=int).reshape(-1, 3).ravel())
    starts = [0, *ends[2::3].tolist()]
    return tuple((starts[n], *ends[3 * n : 3 * n + 3].tolist()) for n in range(len(lengths)))


# structure, places in the row: one to five blocks, full and partial
ROWS = {
    "no pair": ((), 6),
    "one pair": (structure((3, 4, 5)), 12),
    "no chosen tail": (structure((3, 0, 3), (2, 1, 2)), 12),
    "no rejected tail": (structure((3, 3, 0), (2, 1, 2)), 12),
    "one block": (structure((40, 50, 30)), 128),
    "a gap of whole blocks": (structure((100, 300, 200)), 640),
    "tails at the edges of blocks": (structure((128, 128, 128), (1, 127, 128)), 640),
    "shared tokens of whole blocks": (structure((300, 10, 10), (5, 100, 100)), 530),
    "padding of whole blocks": (structure((20, 30, 40)), 500),
}


def seen(pairs, length):
    """[S, S], by the definition; padding counts as a pair of its own."""
    used = pairs[-1][-1] if pairs else 0
    mask = may_attend(np.asarray(pairs, dtype=np.int64).reshape(-1, 4), length)
    mask[used:, used:] = np.tri(length - used, dtype=bool)
    return mask


def assert_same_lists(pairs, length):
    ours = blocks(pairs, length, "cpu").mask()
    theirs = create_block_mask(ours.mask_mod, None, None, length, length, device="cpu", BLOCK_SIZE=BLOCK_SIZE)
    number = theirs.kv_indices.shape[-1]
    for name in LISTS:
        counts, expected = (getattr(mask, f"{name}_num_blocks") for mask in (ours, theirs))
        assert torch.equal(counts[..., :number], expected)
        assert not counts[..., number:].any()
        indices, expected = (getattr(mask, f"{name}_indices") for mask in (ours, theirs))
        listed = torch.arange(number) < counts[..., :number, None]
        assert torch.equal(indices[..., :number, :number][listed], expected[listed])
    return theirs


@pytest.mark.parametrize("name", ROWS)
def test_the_mask_is_the_definition(name):
    pairs, length = ROWS[name]
    mask = create_mask(blocks(pairs, length, "cpu").mask().mask_mod, None, None, length, length, device="cpu")
    assert (mask[0, 0].numpy() == seen(pairs, length)).all()


@pytest.mark.parametrize("name", ROWS)
def test_the_lists_of_blocks_are_those_of_the_dense_mask(name):
    assert_same_lists(*ROWS[name])


def test_the_rows_above_have_blocks_of_every_kind():
    masks = [blocks(pairs, length, "cpu").mask() for pairs, length in ROWS.values()]
    for name in LISTS:
        assert any(getattr(mask, f"{name}_num_blocks").any() for mask in masks)
    assert any((mask.to_dense() == 0).tril().any() for mask in masks)


@settings(max_examples=30, deadline=None)
@given(
    lengths=st.lists(st.tuples(st.integers(1, 200), st.integers(0, 300), st.integers(0, 300)), max_size=4),
    padding=st.integers(0, 300),
)
def test_the_lists_of_random_rows(lengths, padding):
    pairs = structure(*lengths)
    assert_same_lists(pairs, max((pairs[-1][-1] if pairs else 0) + padding, 1))


def test_lists_that_forgot_the_gap_would_be_noticed(monkeypatch):
    bounds = flex._bounds

    def without_gaps(pairs, length):
        starts, *_ = bounds(pairs, length)
        return starts, starts, starts

    pairs, length = ROWS["a gap of whole blocks"]
    expected = blocks(pairs, length, "cpu")
    monkeypatch.setattr(flex, "_bounds", without_gaps)
    found = blocks.__wrapped__(pairs, length, "cpu")
    assert not torch.equal(
        found.kv_num_blocks + found.full_kv_num_blocks, expected.kv_num_blocks + expected.full_kv_num_blocks
    )


@pytest.mark.parametrize("name", ROWS)
def test_the_kernels_add_each_score_that_is_seen_once(name):
    """Walking the lists in memory, by queries as the forward pass does and by keys as the backward pass does."""
    pairs, length = ROWS[name]
    for found in visits(blocks(pairs, length, "cpu").mask(), length):
        assert torch.equal(found, torch.from_numpy(seen(pairs, length)).float())


@pytest.mark.parametrize("name", ["one block", "a gap of whole blocks", "shared tokens of whole blocks"])
def test_gradients_from_the_lists(name):
    pairs, length = ROWS[name]
    for found, expected in gradients_of_kernels_and_on_a_cpu(pairs, length):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_lists_in_the_order_of_their_strides_would_be_noticed(monkeypatch):
    """As before: argsort gave transposed lists transposed strides, and gradients of keys and values were garbage."""

    def with_strides_of(part):
        order = part.to(torch.int8).argsort(dim=1, descending=True, stable=True)
        return part.sum(dim=1).int()[None, None], order.int()[None, None]

    monkeypatch.setattr(flex, "_listed", with_strides_of)
    pairs, length = ROWS["shared tokens of whole blocks"]
    differences = [
        (found - expected).abs().max().item()
        for found, expected in gradients_of_kernels_and_on_a_cpu(pairs, length, build=blocks.__wrapped__)
    ]
    assert differences[0] < 1e-4  # queries have lists of their own
    assert min(differences[1:]) > 0.1


def gradients_of_kernels_and_on_a_cpu(pairs, length, *, build=blocks):
    """Of queries, keys and values, for random gradients of what the pairs attend to."""
    row = [leaf.requires_grad_() for leaf in leaves(length)]
    used = pairs[-1][-1]
    of_places = torch.randn(row[0][:, :, :used].shape, generator=torch.Generator().manual_seed(1))
    ways = (
        flex_attention(*row, block_mask=build(pairs, length, "cpu").mask()),
        pair_attention(*row, torch.tensor(pairs), scale=None),
    )
    return zip(*(torch.autograd.grad(way[:, :, :used], row, of_places) for way in ways), strict=True)


def test_one_mask_for_all_layers():
    assert blocks(structure((2, 2, 2)), 8, "cpu") is blocks(structure((2, 2, 2)), 8, "cpu")
    assert blocks(structure((2, 2, 2)), 8, "cpu") is not blocks(structure((2, 3, 1)), 8, "cpu")


def leaves(length, *, heads=4, groups=2, size=8):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(1, number, length, size, generator=generator) for number in (heads, groups, groups)]


@pytest.fixture
def traced(monkeypatch):
    """Run what torch traces without compiling it; yields the number of graphs so far."""
    torch._dynamo.reset()
    counters.clear()
    compiled = torch.compile(flex._attend, fullgraph=True, backend="eager")
    monkeypatch.setattr(flex, "_compiled", lambda: compiled)
    return lambda: counters["stats"]["unique_graphs"]


@pytest.mark.parametrize(
    "name", ["no chosen tail", "one block", "a gap of whole blocks", "shared tokens of whole blocks"]
)
@pytest.mark.parametrize("scale", [None, 0.7])
def test_the_same_values_as_on_a_cpu(traced, name, scale):
    pairs, length = ROWS[name]
    row = leaves(length)
    used = pairs[-1][-1]
    found = row_attention(*row, pairs, scale)[:, :, :used]
    expected = pair_attention(*row, torch.tensor(pairs), scale=scale)[:, :, :used]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_lengths_compile_nothing_after_the_first(traced):
    """Below and above 128 places, one block and many; only Inductor's own check for 128 adds a second graph."""
    for length in (64, 40, 8, 200, 72, 128, 136, 300, 640):
        row_attention(*leaves(length), structure((1, 2, length - 4)), None)
    assert traced() == 1


def test_more_graphs_than_torch_allows_are_an_error(traced):
    """No silent fallback to S x S scores."""
    with torch._dynamo.config.patch(recompile_limit=2):
        for size in (8, 16):
            row_attention(*leaves(16, size=size), structure((2, 3, 4)), None)
        with pytest.raises(torch._dynamo.exc.FailOnRecompileLimitHit):
            row_attention(*leaves(16, size=24), structure((2, 3, 4)), None)
    assert traced() == 2
