"""Stage `train`: a .nemo checkpoint and pairs in, a run folder out.

In the order of a run: launch (one process or many) -> run_folder (whose is it) -> tokens (text to arrays, once)
-> run (wiring, every rank) -> trainer (the loop) -> model (forward, loss, metrics) -> checkpoints.
"""
