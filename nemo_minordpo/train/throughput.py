"""The cost of a step: throughput in pairs, tokens and floating-point operations, fraction of the peak, and memory."""

import resource
import sys
import time
from dataclasses import dataclass

import torch

from nemo_minordpo.core.flops import ModelSize, StepWork

# n x n x n products reach the machine's peak, and fit in a laptop's memory.
_CPU_N, _CUDA_N, _REPEATS = 2048, 8192, 5


@dataclass(frozen=True)
class Throughput:
    """Rates of a step, over all ranks.

    size: sizes of the model.
    matmul_peak: floating-point operations per second of large matrix products, on all ranks at the same time.
    frozen: the weights get no gradient (LoRA).
    """

    size: ModelSize
    matmul_peak: float
    frozen: bool

    def of(self, work: StepWork, seconds: float) -> dict[str, float]:
        """
        - `step_s`: the whole step: laying out, reference, forward, backward, reduction, optimizer, metrics.
        - `tokens_per_s`: tokens computed; tokens that both responses of a pair share count once.
        - `tokens_per_s_equivalent`: tokens of both sequences of each pair, for comparison with other trainers.
        - `row_fill`: fraction of the rows that is not padding.
        - `model_tflops`: 10^12 floating-point operations per second that the model needs (core/flops.py).
        - `matmul_peak_fraction`: the same, divided by the measured peak of matrix products.
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
    """Peak memory so far of the fullest rank, in GiB: of its GPU, or of its process. Collective, one number.

    On a GPU, this is what torch's allocator reserved, without the CUDA context and NCCL's buffers.
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
    """FLOP/s of this rank's matrix products, best of a few; ranks that share a machine measure at the same time.

    The matrices are random: constant ones take a GPU less power, so it runs up to an eighth faster.
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
