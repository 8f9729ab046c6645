"""Custom layers of the trained models, used on every machine: attention over packed pairs, query and key norms."""
