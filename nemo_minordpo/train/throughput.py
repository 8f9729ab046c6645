"""What a step takes: seconds by pair, token and floating-point operation, the share of the machine's peak, memory."""

import resource
import sys
import time
from dataclasses import dataclass

import torch

from nemo_minordpo.core.flops import ModelSize, StepWork

# An n x n x n product is as fast as the machine gets, and small enough for a laptop's memory.
_CPU_N, _CUDA_N, _REPEATS = 2048, 8192, 5


@dataclass(frozen=True)
class Throughput:
    """Rates of a step, over all ranks.

    size: of the model.
    matmul_peak: floating-point operations per second of all ranks' largest matrix products at the same time.
    frozen: the weights get no gradient (LoRA).
    """

    size: ModelSize
    matmul_peak: float
    frozen: bool

    def of(self, work: StepWork, seconds: float) -> dict[str, float]:
        """
        - `step_s`: the whole step: laying out, reference, forward, backward, reduction, optimizer, metrics.
        - `tokens_per_s`: tokens that were computed; what a pair shares counts once.
        - `tokens_per_s_equivalent`: tokens of both sequences of each pair, for comparison with other trainers.
        - `row_fill`: the part of the rows that is no padding.
        - `model_tflops`: 10^12 floating-point operations per second that the model needs (core/flops.py).
        - `matmul_peak_fraction`: the same over the measured peak of matrix products.
        """
        flops = self.size.training_flops(work, frozen=self.frozen) / seconds
        return {
            "step_s": seconds,
            "pairs_per_s": work.pairs / seconds,
            "tokens_per_s": work.unique_tokens / seconds,
            "tokens_per_s_equivalent": work.equivalent_tokens / seconds,
            "row_fill": work.unique_tokens / work.places,
            "model_tflops": flops / 1e12,
            "matmul_peak_fraction": flops / self.matmul_peak,
        }


def peak_memory_gib() -> float:
    """GiB that the fullest rank has held at most so far: of its GPU, or of its process. Collective, one number.

    On a GPU what torch's allocator reserved, without the CUDA context and NCCL's buffers.
    """
    if torch.cuda.is_available():
        own = float(torch.cuda.max_memory_reserved())
    else:
        unit = 1 if sys.platform == "darwin" else 2**10
        own = float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)
    peak = torch.tensor([own], dtype=torch.float64, device=torch.cuda.current_device())
    torch.distributed.all_reduce(peak, op=torch.distributed.ReduceOp.MAX)
    return float(peak.item()) / 2**30


def measure_matmul_peak(dtype: torch.dtype) -> float:
    """FLOP/s of this rank's matrix products, the best of a few; ranks that share a machine measure together.

    Of random numbers: a GPU multiplies constant ones with less power, and so up to an eighth faster.
    """
    device = torch.device(torch.cuda.current_device())
    n = _CUDA_N if device.type == "cuda" else _CPU_N
    with torch.random.fork_rng():
        left, right = (torch.randn(n, n, dtype=dtype, device=device) for _ in range(2))
    best = float("inf")
    for _ in range(_REPEATS):
        torch.cuda.synchronize()
        started = time.perf_counter()
        torch.mm(left, right)
        torch.cuda.synchronize()
        best = min(best, time.perf_counter() - started)
    return 2 * n**3 / best
