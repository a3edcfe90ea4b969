"""Hystar and the backbones and style extractors it adapts."""
