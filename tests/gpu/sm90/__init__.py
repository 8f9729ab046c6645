"""`python -m tests.gpu.sm90`: compile everything that torch compiles for an H100, on a machine without a GPU.

Dynamo, AOTAutograd, Inductor, Triton and ptxas run as on the GPU machine, on tensors without values. Nothing is
executed: this shows that the kernels compile, what they need and how many graphs there are, but not what they compute.
"""
