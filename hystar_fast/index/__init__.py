"""Indexes of embeddings, and search in them."""
