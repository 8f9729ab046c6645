"""Preference pairs as tokens, for every stage that reads them with a tokenizer."""
