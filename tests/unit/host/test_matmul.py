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
    found, exact = matmul._through_onednn(left, right), left.double() @ right.double()
    assert found.dtype == torch.float32
    assert found.is_contiguous()
    torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.int64])
def test_other_types_stay_with_torch(dtype):
    left, right = torch.ones(300, 40, dtype=dtype), torch.ones(40, 300, dtype=dtype)
    assert torch.equal(matmul._mm(left, right), torch.full((300, 300), 40, dtype=dtype))


@pytest.mark.parametrize("turned", [False, True])
def test_bfloat16_through_float32_is_rounded_once(turned):
    left, right = torch.randn(300, 2000).bfloat16(), torch.randn(2000, 200).bfloat16()
    if turned:
        left, right = right.T, left.T
    found, exact = matmul._through_float32(left, right), left.double() @ right.double()
    assert found.dtype == torch.bfloat16
    one_rounding = torch.finfo(torch.bfloat16).eps / 2
    of_sums = 1e-4  # in float32, where terms cancel
    assert ((found.double() - exact).abs() <= one_rounding * exact.abs() + of_sums).all()
    # the control: rounded in between
    halves = sum(matmul._through_float32(left[:, part], right[part]) for part in (slice(0, 1000), slice(1000, 2000)))
    assert ((halves.double() - exact).abs() > one_rounding * exact.abs() + of_sums).any()


@pytest.mark.parametrize(
    ("gains", "replaced"),
    [
        ({"float32": 1.08, "bfloat16": 0.5}, []),
        ({"float32": 0.9, "bfloat16": 4.5}, ["bfloat16"]),
        ({"float32": 2.1, "bfloat16": 0.5}, ["float32"]),
        ({"float32": 2.1, "bfloat16": 4.5}, ["float32", "bfloat16"]),
    ],
)
def test_only_slow_products_are_replaced(monkeypatch, gains, replaced):
    registered = []

    class Library:
        def __init__(self, *names): ...

        def impl(self, name, function, key):
            registered.append((name, function, key))

    monkeypatch.setattr(matmul, "_gain", gains.get)
    monkeypatch.setattr(matmul, "_products", {})
    monkeypatch.setattr(matmul, "_library", None)
    monkeypatch.setattr(torch.library, "Library", Library)
    assert len(matmul.install()) == len(replaced)
    assert matmul.replaced() == replaced
    matmul.use(replaced)
    assert matmul.replaced() == replaced
    assert registered == ([("mm", matmul._mm, "CPU")] if replaced else [])
    matmul.use([])
    assert matmul._mm(torch.ones(2, 3), torch.ones(3, 4)).tolist() == [[3.0] * 4] * 2


def test_gain_is_a_ratio_of_measured_times(monkeypatch):
    monkeypatch.setattr(matmul, "core_seconds", lambda *calls: [len([call() for call in calls]) * 1.0, 0.5])
    assert matmul._gain("float32") == matmul._gain("bfloat16") == 4.0
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert matmul._gain("float32") == 0.0
