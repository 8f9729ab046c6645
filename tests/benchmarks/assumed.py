"""Assumptions about GPUs, kernels and models for docs/step-time.md, which names the sources."""

from dataclasses import replace

from nemo_minordpo.core.flops import ModelSize
from nemo_minordpo.core.step_time import Device, HeadKernels, Software

PEAK = 989.4e12  # both GPUs in bfloat16; the reference for model FLOP utilisation
_SUSTAINED = 0.8  # fraction of the best shape's speed; chosen to agree with PUBLISHED
H100 = Device(
    bf16_peak=PEAK, fp8_peak=2 * PEAK, memory=3.35e12, nvlink=450e9, network=50e9,
    bf16_efficiency=_SUSTAINED * 0.803, fp8_efficiency=_SUSTAINED * 0.709, memory_efficiency=0.92,
    nvlink_efficiency=0.81, network_efficiency=0.9, latency=20e-6,
)  # fmt: skip
H200 = replace(H100, memory=4.8e12, fp8_efficiency=_SUSTAINED * 0.734)
DEVICES = {"H100": H100, "H200": H200}

# Passes over float32 logits: formerly 7 forward and 7.5 backward; now one each (core/logits.py); with cut
# cross-entropy none, but slower products and fewer of them.
HEADS = {
    "single operations": HeadKernels(products=4, efficiency=None, bytes_of_logit=58, bytes_of_weight=16),
    "one pass per block": HeadKernels(products=4, efficiency=None, bytes_of_logit=10, bytes_of_weight=16),
    "cut cross-entropy": HeadKernels(products=1 + 95 / 43, efficiency=0.55, bytes_of_logit=0, bytes_of_weight=16),
    "cut cross-entropy, unfiltered": HeadKernels(
        products=1 + 324 / 42, efficiency=0.55, bytes_of_logit=0, bytes_of_weight=16
    ),
}
SINGLE = Software(
    fp8=False, fused_accumulation=False, fused_rope=False, fused_swiglu=False, attention_forward=300e12,
    attention_backward=220e12, head=HEADS["one pass per block"], exposed_tensor=1.0, exposed_data=1.0,
    virtual_stages=1, linear_launch=60e-6, other_launches=56, launch=6e-6, row_launch=5e-3,
)  # fmt: skip
# What fusions=te turns on, one by one
FUSIONS = {
    "SwiGLU fused (`bias_activation_fusion`)": {"fused_swiglu": True, "other_launches": 50},
    "rotary embedding fused (`apply_rope_fusion`)": {"fused_rope": True, "other_launches": 36},
    "gradients added by the products (`gradient_accumulation_fusion`)": {
        "fused_accumulation": True, "other_launches": 30,
    },
}  # fmt: skip
FUSED = replace(SINGLE, **{key: value for change in FUSIONS.values() for key, value in change.items()})


def in_fp8(software: Software) -> Software:
    return replace(software, fp8=True, linear_launch=125e-6)


def size_of(layers: int, hidden: int, ffn: int, heads: int, groups: int, vocab: int) -> ModelSize:
    return ModelSize(
        num_layers=layers, hidden_size=hidden, ffn_hidden_size=ffn, num_heads=heads, num_query_groups=groups,
        head_size=128, vocab_size=vocab, gated=True,
    )  # fmt: skip


QWEN_1_5B = size_of(28, 1536, 8960, 12, 2, 151936)
LLAMA_8B, LLAMA_70B = size_of(32, 4096, 14336, 32, 8, 128256), size_of(80, 8192, 28672, 64, 8, 128256)
