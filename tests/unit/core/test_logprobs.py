"""Fast against slow and obvious, whole against sharded, value and gradient."""

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from nemo_minordpo.core.logprobs import mask_padded_vocabulary, sequence_log_probs, vocab_parallel_token_log_probs

TOKENS, VOCAB = 37, 48


def example(dtype, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = 5 * torch.randn(TOKENS, VOCAB, generator=generator, dtype=torch.float64).to(dtype)
    return logits, torch.randint(VOCAB, (TOKENS,), generator=generator), torch.randn(TOKENS, generator=generator)


def naive(logits, targets):
    return logits.float().log_softmax(-1).gather(-1, targets[:, None])[:, 0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_worse_than_naive(dtype):
    """Error against float64, bounded by the error of the naive form in the same dtype."""
    logits, targets, weights = example(dtype)
    exact = logits.double().requires_grad_()
    exact_values = exact.log_softmax(-1).gather(-1, targets[:, None])[:, 0]
    (exact_values * weights.double()).sum().backward()
    errors = {}
    for name, function in (("ours", vocab_parallel_token_log_probs), ("naive", naive)):
        leaf = logits.clone().requires_grad_()
        values = function(leaf, targets, group=None) if name == "ours" else function(leaf, targets)
        assert values.dtype == torch.float32
        (values * weights).sum().backward()
        errors[name] = (
            (values.double() - exact_values).abs().max().item(),
            (leaf.grad.double() - exact.grad).abs().max().item(),
        )
    assert errors["ours"][0] <= 2 * errors["naive"][0] + 1e-7
    assert errors["ours"][1] <= 2 * errors["naive"][1] + 1e-7


def test_does_not_modify_its_input():
    logits, targets, _ = example(torch.float32)
    before = logits.clone()
    vocab_parallel_token_log_probs(logits, targets, group=None)
    assert torch.equal(logits, before)


def test_large_logits_stay_finite():
    logits = torch.tensor([[1e4, -1e4, 0.0]], requires_grad=True)
    values = vocab_parallel_token_log_probs(logits, torch.tensor([0]), group=None)
    values.sum().backward()
    assert values.item() == 0.0
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("logits", [torch.zeros(3, 5), torch.zeros(2, 2, 5)])
def test_shapes_that_do_not_fit(logits):
    with pytest.raises(ValueError, match="expected"):
        vocab_parallel_token_log_probs(logits, torch.zeros(2, dtype=torch.long), group=None)


def test_no_token_at_all():
    logits = torch.zeros(0, VOCAB, requires_grad=True)
    values = vocab_parallel_token_log_probs(logits, torch.zeros(0, dtype=torch.long), group=None)
    empty = torch.zeros(0, dtype=torch.long)
    sums = sequence_log_probs(values, row=empty, column=empty, num_rows=2)
    sums.sum().backward()
    assert sums.tolist() == [0.0, 0.0]
    assert logits.grad.shape == (0, VOCAB)


def test_sequence_sums_worked_by_hand():
    values = torch.tensor([-1.0, -2.0, -4.0, -8.0], requires_grad=True)
    sums = sequence_log_probs(values, row=torch.tensor([2, 0, 2, 2]), column=torch.tensor([0, 0, 1, 2]), num_rows=3)
    assert sums.tolist() == [-2.0, 0.0, -13.0]
    assert sums.dtype == torch.float64
    (sums * torch.tensor([1.0, 10.0, 100.0])).sum().backward()
    assert values.grad.tolist() == [100.0, 1.0, 100.0, 100.0]


def _sharded(rank, ranks, results):
    dist.init_process_group("gloo", init_method=results["init"], rank=rank, world_size=ranks)
    logits, targets, weights = example(torch.float32)
    size = VOCAB // ranks
    shard = logits[:, rank * size : (rank + 1) * size].clone().requires_grad_()
    for masked in (False, True):
        shard.grad = None
        here = mask_padded_vocabulary(shard * 1, vocab_size=21, group=dist.group.WORLD) if masked else shard
        values = vocab_parallel_token_log_probs(here, targets % 21 if masked else targets, group=dist.group.WORLD)
        (values * weights).sum().backward()
        torch.save((values.detach(), shard.grad), f"{results['folder']}/{rank}_{masked}.pt")
    dist.destroy_process_group()


@pytest.mark.parametrize("ranks", [2, 4])
def test_sharded_equals_whole(tmp_path, ranks):
    """Also with padding that covers part of a rank's slice and, at 4 ranks, whole slices."""
    mp.spawn(_sharded, (ranks, {"init": f"file://{tmp_path}/rendezvous", "folder": str(tmp_path)}), nprocs=ranks)
    logits, targets, weights = example(torch.float32)
    for masked in (False, True):
        leaf = logits.clone().requires_grad_()
        expected = naive(leaf[:, :21], targets % 21) if masked else naive(leaf, targets)
        (expected * weights).sum().backward()
        parts = [torch.load(tmp_path / f"{rank}_{masked}.pt") for rank in range(ranks)]
        for values, _ in parts:
            torch.testing.assert_close(values, expected.detach(), rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(torch.cat([grad for _, grad in parts], dim=1), leaf.grad, rtol=1e-5, atol=1e-6)
