"""The frameworks that build a model, split it over ranks, run its optimizer and write its checkpoints.

Nothing above this package knows which one it is: it sees `protocol.Host` and the model's `PairModel`.
"""
