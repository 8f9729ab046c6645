"""Rehearse `gpu-check` without a GPU: the CPU emulates CUDA and Transformer Engine's kernels.

    make gpu-rehearsal

Real: NeMo, Megatron-Core, Transformer Engine's Python layers, delayed scaling, Adam's main weights, the distributed
optimizer, checkpoints, and all of this project. Emulated:

- cuda.py: CUDA calls run on the CPU; every tensor claims to be on CUDA.
- attention.py: FlexAttention, from the lists of blocks as its kernels read them.
- kernels.py: Transformer Engine's C++ extension, function by function, in Python.

This tests wiring, shapes and numbers in float32, bfloat16 and FP8. It cannot show that a kernel works, that tensors are
on the right device, or how long anything takes; tests.gpu.sm90 rehearses compilation.
"""

ACTIVE = "MINORDPO_REHEARSAL"  # environment variable for processes that should see the emulated GPU
