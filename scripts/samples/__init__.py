"""The recordings of analysis/samples, made again: ``.venv/bin/python -m scripts.samples``."""
