"""Stage `train`: turns a .nemo checkpoint and pairs into a run folder.

In the order of a run: launch (one process or many) -> run_folder (new run or resumed?) -> tokens (text to arrays, once)
-> run (wiring, every rank) -> trainer (the loop) -> model (forward, loss, metrics) -> checkpoints.
"""
