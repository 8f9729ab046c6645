"""`python -m tests.gpu.sm90`: what torch compiles for an H100 is compiled, on a machine without a GPU.

Dynamo, AOTAutograd, Inductor, Triton and ptxas run as they would there, on tensors without values. Nothing is executed:
this shows that kernels exist, what they need and how many graphs there are, and no number that they compute.
"""
