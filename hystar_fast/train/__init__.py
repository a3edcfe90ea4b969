"""Optimiser groups, the training loop and checkpoints."""
