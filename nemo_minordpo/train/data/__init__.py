"""The packed batches of a step."""
