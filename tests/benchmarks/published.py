"""Published step times of pre-training, compared with the formulas of core/step_time.py."""

from dataclasses import dataclass, replace

from nemo_minordpo.core.flops import ModelSize, StepWork
from nemo_minordpo.core.memory import Layout
from nemo_minordpo.core.step_time import HeadKernels, Run, Software, step_seconds, utilisation
from tests.benchmarks.assumed import FUSED, H100, LLAMA_8B, LLAMA_70B, PEAK, in_fp8, size_of


@dataclass(frozen=True)
class Published:
    """A measured pre-training step: sequences of `length` tokens, each split over `split` GPUs."""

    name: str
    size: ModelSize
    layout: tuple[int, int, int]  # tensor-, pipeline-, data-parallel, without the GPUs that share a sequence
    sequences: int
    length: int
    split: int
    virtual_stages: int
    fp8: bool
    seconds: float

    def run(self) -> Run:
        tensor, pipeline, data = self.layout
        attended, tokens = self.sequences * self.length * (self.length + 1) // 2, self.sequences * self.length
        work = StepWork(
            pairs=0, unique_tokens=tokens, equivalent_tokens=tokens, attended=attended, targets=tokens, places=tokens
        )
        layout = Layout(
            tensor_parallel=tensor, pipeline_parallel=pipeline, sequence_parallel=tensor > 1, recompute=False,
            row_length=self.length // self.split, num_rows=self.sequences // data, num_targets=0,
        )  # fmt: skip
        return Run(
            size=self.size, layout=layout, work=work, visited=attended, data_parallel=data * self.split, tied=False
        )

    def software(self) -> Software:
        """With cuDNN's attention, whole logits in bfloat16, everything fused, communication mostly hidden."""
        software = replace(
            FUSED, attention_forward=550e12, attention_backward=450e12, exposed_tensor=0.3, exposed_data=0.1,
            head=HeadKernels(products=3, efficiency=None, bytes_of_logit=50, bytes_of_weight=0),
            virtual_stages=self.virtual_stages,
        )  # fmt: skip
        return in_fp8(software) if self.fp8 else software

    def comparison(self) -> dict[str, float]:
        run = self.run()
        step = step_seconds(run, H100, self.software())
        return {
            "seconds": self.seconds, "expected": step.total, "ratio": step.total / self.seconds,
            "utilisation": utilisation(run, step, peak=PEAK),
        }  # fmt: skip


def _gpt(
    name: str, layers: int, hidden: int, heads: int, layout: tuple[int, int, int], batch: int, tflops: float
) -> Published:
    """A step of Megatron-LM, from its TFLOP/s per GPU, which count attention without causality."""
    size = replace(size_of(layers, hidden, 4 * hidden, heads, heads, 131072), head_size=hidden // heads, gated=False)
    flops = 72 * batch * 4096 * layers * hidden**2 * (1 + 4096 / (6 * hidden) + 131072 / (12 * layers * hidden))
    seconds = flops / (layout[0] * layout[1] * layout[2]) / (tflops * 1e12)
    return Published(name, size, layout, batch, 4096, 1, 1, False, seconds)


PUBLISHED = (
    Published("Llama 3.1 8B, bf16, 8 GPUs [1]", LLAMA_8B, (1, 1, 4), 128, 8192, 2, 1, False, 12.27),
    Published("Llama 3.1 8B, FP8, 8 GPUs [1]", LLAMA_8B, (1, 1, 4), 128, 8192, 2, 1, True, 9.33),
    Published("Llama 3.1 70B, bf16, 64 GPUs [1]", LLAMA_70B, (4, 4, 2), 128, 8192, 2, 5, False, 14.66),
    Published("Llama 3.1 70B, FP8, 64 GPUs [2]", LLAMA_70B, (4, 4, 2), 128, 8192, 2, 5, True, 10.46),
    _gpt("GPT 1.7B, bf16, 48 GPUs [3]", 24, 2048, 16, (1, 1, 48), 192, 408.8),
    _gpt("GPT 7.1B, bf16, 96 GPUs [3]", 30, 4096, 32, (2, 1, 48), 192, 465.9),
    _gpt("GPT 70B, bf16, 768 GPUs [3]", 84, 8192, 64, (8, 2, 48), 384, 419.7),
)
