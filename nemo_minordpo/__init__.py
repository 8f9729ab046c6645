"""Robust preference optimisation (DPO, DPOP, MinorDPO) on NeMo-Aligner and Megatron-Core."""

__version__ = "0.1.0"
# of training and of preparing pairs, unless --seed or model.seed sets another
DEFAULT_SEED = 1234
