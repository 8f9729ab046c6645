import pytest
import torch

from nemo_minordpo.core.flops import ModelSize, StepWork
from nemo_minordpo.train import throughput
from nemo_minordpo.train.throughput import Throughput, measure_matmul_peak

SIZE = ModelSize(
    num_layers=2,
    hidden_size=8,
    ffn_hidden_size=16,
    num_heads=2,
    num_query_groups=1,
    head_size=4,
    vocab_size=100,
    gated=True,
)
WORK = StepWork(pairs=6, unique_tokens=300, equivalent_tokens=500, attended=4000, targets=50, places=400)
# per layer: 8 * 8 (queries), 2 * 8 * 4 (keys, values), 8 * 8 (projection), 3 * 8 * 16 (MLP)
LINEAR, ATTENTION = 2 * 2 * (64 + 64 + 64 + 384) * 300 + 2 * 8 * 100 * 50, 2 * 4 * 8 * 4000


@pytest.mark.parametrize(("frozen", "flops"), [(False, 3 * (LINEAR + ATTENTION)), (True, 2 * LINEAR + 3 * ATTENTION)])
def test_rates_worked_by_hand(frozen, flops):
    rates = Throughput(size=SIZE, matmul_peak=1e7, frozen=frozen).of(WORK, 0.5)
    assert LINEAR + ATTENTION == 1_027_200
    assert rates == pytest.approx(
        {
            "step_s": 0.5,
            "pairs_per_s": 12,
            "tokens_per_s": 600,
            "tokens_per_s_equivalent": 1000,
            "row_fill": 0.75,
            "model_tflops": flops / 0.5 / 1e12,
            "matmul_peak_fraction": flops / 0.5 / 1e7,
        },
        rel=1e-12,
    )


def test_the_peak_comes_from_the_fastest_product(monkeypatch):
    monkeypatch.setattr(torch.cuda, "current_device", lambda: torch.device("cpu"))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(throughput, "_CPU_N", 32)
    clock = iter([0.0, 3.0, 10.0, 10.5, 20.0, 24.0, 30.0, 31.0, 40.0, 49.0])
    monkeypatch.setattr(throughput.time, "perf_counter", lambda: next(clock))
    assert measure_matmul_peak(torch.float32) == 2 * 32**3 / 0.5
    assert next(clock, None) is None
