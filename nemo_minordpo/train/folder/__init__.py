"""The run folder: what a run keeps on disk, and who may write it."""
