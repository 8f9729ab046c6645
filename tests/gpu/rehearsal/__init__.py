"""A rehearsal of `gpu-check` where there is no GPU: CUDA and Transformer Engine's kernels are played by the CPU.

    make gpu-rehearsal

What is real: NeMo, Megatron-Core, Transformer Engine's Python layers, delayed scaling, Adam's main weights, the
distributed optimizer, checkpoints, and all of this project. What is played:

- cuda.py: calls to CUDA end on the CPU; every tensor says that it is on CUDA; FlexAttention is a dense mask.
- kernels.py: Transformer Engine's C++ extension, function by function, in Python.

It shows wiring, shapes and numbers in float32, bfloat16 and FP8. It cannot show that a kernel works, that tensors are
on the device that they should be on, or how long anything takes; compilation is rehearsed by tests.gpu.sm90.
"""

ACTIVE = "MINORDPO_REHEARSAL"  # set in the environment of processes that are to find the played GPU
