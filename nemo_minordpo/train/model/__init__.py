"""The model in its parallel layout: NeMo-Aligner's DPO model on packed pairs, and what it is built from."""
