"""The commands of `minordpo`, grouped by subject; __main__ registers them."""
