"""NeMo-Aligner 0.7.0 on NeMo 2.1 to 2.4 with Megatron-Core 0.10 to 0.12."""
