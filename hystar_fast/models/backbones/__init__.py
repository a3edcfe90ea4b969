"""Backbones of Hystar: vision transformers of open_clip and transformers, ALBEF, and the packaged tiny model."""

from __future__ import annotations

from hystar_fast.models.adapter_format import not_finite
from hystar_fast.models.backbones.base import Backbone
from hystar_fast.models.backbones.tower import TowerBackbone
from hystar_fast.models.config import HystarConfig

__all__ = ["Backbone", "create_backbone"]


def create_backbone(config: HystarConfig) -> TowerBackbone:
    """Create the frozen backbone of `config`, in evaluation mode.

    Raises:
        ValueError: the backbone cannot be adapted, or its weights cannot be loaded or are not finite; the message names
            the field.
    """
    backbone = _load(config)
    broken = not_finite(backbone.named_parameters())
    if broken:
        raise ValueError(
            f"backbone {config.backbone!r} with pretrained={config.pretrained!r} must have finite weights, got NaN or "
            f"inf in {broken}"
        )
    return backbone


def _load(config: HystarConfig) -> TowerBackbone:
    prefix, _, name = config.backbone.partition(":")
    if prefix == "open_clip":
        from hystar_fast.models.backbones.open_clip import load_open_clip

        return load_open_clip(name, config.pretrained, config.image_size)
    if prefix == "albef":
        from hystar_fast.models.backbones.albef import load_albef

        return load_albef(name, config.pretrained, config.image_size)
    if config.image_size is not None:
        raise ValueError(f"image_size must be None for backbone {config.backbone!r}, got {config.image_size}")
    if prefix == "transformers":
        from hystar_fast.models.backbones.transformers import load_transformers

        return load_transformers(name, config.pretrained)
    from hystar_fast.models.backbones.open_clip import load_tiny

    return load_tiny(config.pretrained)
