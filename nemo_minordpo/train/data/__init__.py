"""Pairs as token arrays, and the packed batches of a step."""
