"""Robust preference optimisation (DPO, DPOP, MinorDPO) on NeMo-Aligner and Megatron-Core."""

__version__ = "0.1.0"
