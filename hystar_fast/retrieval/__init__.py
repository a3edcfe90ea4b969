"""Embedding, indexing, metrics, evaluation and pictures."""
