"""The model in its parallel layout: NeMo-Aligner's DPO model on packed pairs, and its configuration."""
