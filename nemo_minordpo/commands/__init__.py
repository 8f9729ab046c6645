"""The commands of `minordpo`, by subject; __main__ puts them in order."""
