"""The run folder: a run's files on disk, and who may write them."""
