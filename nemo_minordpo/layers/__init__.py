"""Layers of the models that this project trains, on every machine: attention of packed pairs, query and key norms."""
