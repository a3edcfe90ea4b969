"""Hystar, and the backbones and style extractors that it is built from."""
