"""The head's work on a block of logits in both forms, op by op and as one function, against float64."""

import shutil

import pytest
import torch
from torch._dynamo.utils import counters

from nemo_minordpo.core import logits
from nemo_minordpo.core.logits import fused_statistics, fused_surplus, statistics, surplus

TOKENS, COLUMNS = 11, 40


def block(*, tokens=TOKENS, columns=COLUMNS, scale=5.0):
    """Logits in float32, targets inside and outside the block, the normaliser of a larger vocabulary."""
    generator = torch.Generator().manual_seed(0)
    made = torch.randn(tokens, columns, generator=generator) * scale
    targets = torch.randint(-columns // 2, columns + columns // 2, (tokens,), generator=generator)
    targets[:4] = torch.tensor([-1, 0, columns - 1, columns])[: len(targets)]
    normaliser = made.double().logsumexp(dim=1) + torch.rand(tokens, generator=generator, dtype=torch.float64)
    return made, targets, normaliser


def exact_statistics(made, targets):
    wanted = [
        row[t].item() if 0 <= t < len(row) else 0.0 for row, t in zip(made.double(), targets.tolist(), strict=True)
    ]
    return made.double().logsumexp(dim=1), torch.tensor(wanted, dtype=torch.float64)


def exact_surplus(made, targets, normaliser):
    expected = (made.double() - normaliser[:, None]).exp()
    for row, target in zip(expected, targets.tolist(), strict=True):
        if 0 <= target < len(row):
            row[target] -= 1
    return expected


@pytest.mark.parametrize("function", [statistics, fused_statistics], ids=["steps", "fused"])
@pytest.mark.parametrize("scale", [1.0, 5.0, 1e4])
def test_normaliser_and_target(function, scale):
    made, targets, _ = block(scale=scale)
    expected, wanted = exact_statistics(made, targets)
    found, target_logits = function(made.clone(), targets)
    assert found.dtype == torch.float64
    # relative to the normaliser above the largest logit, which is a float32 sum
    largest = made.amax(dim=1).double()
    torch.testing.assert_close(found - largest, expected - largest, rtol=1e-6, atol=1e-6)
    assert torch.equal(target_logits.double(), wanted)


@pytest.mark.parametrize("function", [surplus, fused_surplus], ids=["steps", "fused"])
@pytest.mark.parametrize(("dtype", "error"), [(torch.float32, 1e-6), (torch.bfloat16, 2**-8)])
def test_surplus(function, dtype, error):
    made, targets, normaliser = block()
    found = function(made.clone(), normaliser.float(), targets, dtype=dtype)
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), exact_surplus(made, targets, normaliser), rtol=error, atol=1e-6)


def test_both_forms_round_alike():
    """Equal to one unit in the last place of float32, and the same bfloat16 except at rounding boundaries."""
    made, targets, normaliser = block(tokens=200, columns=300)
    for dtype, error in ((torch.float32, 2e-7), (torch.bfloat16, 2**-8)):
        forms = [f(made.clone(), normaliser.float(), targets, dtype=dtype) for f in (surplus, fused_surplus)]
        torch.testing.assert_close(*forms, rtol=error, atol=0)


def test_a_target_counted_in_the_wrong_block_would_be_noticed():
    made, targets, normaliser = block()
    found = fused_surplus(made, normaliser.float(), targets - 1, torch.float32)
    assert (found - exact_surplus(made, targets, normaliser)).abs().max() > 0.5


def test_blocks_of_all_sizes_compile_once(monkeypatch):
    """Any number of tokens and columns, with a small last block; smaller blocks run uncompiled."""
    torch._dynamo.reset()
    counters.clear()
    monkeypatch.setattr(logits, "_is_compiled", lambda made: min(made.shape) >= logits._SMALLEST)
    monkeypatch.setattr(
        logits, "_compiled", lambda function: torch.compile(function, dynamic=True, fullgraph=True, backend="eager")
    )
    for tokens, columns in ((16, 40), (16, 24), (9, 9), (300, 8), (1, 40), (40, 1), (8, 128), (64, 64)):
        made, targets, normaliser = block(tokens=tokens, columns=columns)
        statistics(made.clone(), targets)
        surplus(made, normaliser.float(), targets, dtype=torch.bfloat16)
    assert counters["stats"]["unique_graphs"] == 2 * logits.MAX_GRAPHS


@pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler")
def test_compiled_code_gives_the_same():
    made, targets, normaliser = block()
    compiled = [torch.compile(function, dynamic=True, fullgraph=True) for function in (fused_statistics, fused_surplus)]
    expected, wanted = exact_statistics(made, targets)
    found, target_logits = compiled[0](made, targets)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    assert torch.equal(target_logits.double(), wanted)
    of_logits = compiled[1](made, normaliser.float(), targets, torch.bfloat16)
    torch.testing.assert_close(of_logits.double(), exact_surplus(made, targets, normaliser), rtol=2**-8, atol=1e-6)
