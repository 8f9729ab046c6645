"""Megatron-Bridge 0.6 on Megatron-Core 0.19: NVIDIA's stack after NeMo-Aligner."""
