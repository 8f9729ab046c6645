"""Pure mathematics on tensors and strings: no NeMo, no files, no global state."""
