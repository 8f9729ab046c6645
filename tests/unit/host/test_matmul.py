"""Matrix products through oneDNN: the same numbers in every memory layout, and only on the right CPUs and types."""

import pytest
import torch

from nemo_minordpo.host import matmul


@pytest.mark.parametrize("sizes", [(96, 200, 72), (200, 96, 300), (1, 600, 700), (3, 2, 4), (0, 5, 6)])
@pytest.mark.parametrize("turned", [(False, False), (True, False), (False, True), (True, True)])
def test_same_product(sizes, turned):
    rows, inner, columns = sizes
    left = torch.randn(inner, rows).T if turned[0] else torch.randn(rows, inner)
    right = torch.randn(columns, inner).T if turned[1] else torch.randn(inner, columns)
    found, exact = matmul._mm(left, right), left.double() @ right.double()
    assert found.dtype == torch.float32
    assert found.is_contiguous()
    torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.int64])
def test_other_types_stay_with_torch(dtype):
    left, right = torch.ones(300, 40, dtype=dtype), torch.ones(40, 300, dtype=dtype)
    assert torch.equal(matmul._mm(left, right), torch.full((300, 300), 40, dtype=dtype))


def test_other_processors_are_left_alone(monkeypatch):
    monkeypatch.setattr(matmul, "_is_amd_with_avx512", lambda: False)
    assert matmul.install() == []
    assert matmul._library is None
