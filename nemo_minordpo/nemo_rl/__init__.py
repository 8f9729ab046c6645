"""This project's losses in NeMo-RL, for training there instead of on NeMo-Aligner.

NeMo-RL runs DPO on GPUs with one loss; these modules add the other losses and a cached reference without changing it.
They import NeMo-RL, so nothing else imports them. Written for NeMo-RL of August 2026 (commit 7ea279a).
"""
