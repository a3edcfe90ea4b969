"""Encoders Hystar can adapt: vision transformers of open_clip and transformers, and the packaged tiny one."""

from __future__ import annotations

from hystar_fast.models.backbones.base import Backbone
from hystar_fast.models.config import HystarConfig

__all__ = ["Backbone", "create_backbone"]


def create_backbone(config: HystarConfig) -> Backbone:
    """The frozen backbone `config` names, in evaluation mode.

    Raises:
        ValueError: naming the field, when the backbone is not supported or its weights cannot be had.
    """
    prefix, _, name = config.backbone.partition(":")
    if prefix == "open_clip":
        from hystar_fast.models.backbones.open_clip import load_open_clip

        return load_open_clip(name, config.pretrained)
    if config.backbone == "tiny":
        from hystar_fast.models.backbones.open_clip import load_tiny

        return load_tiny(config.pretrained)
    if prefix == "transformers":
        from hystar_fast.models.backbones.transformers import load_transformers

        return load_transformers(name, config.pretrained)
    raise ValueError(
        f"backbone {config.backbone!r} is not supported by this version; it reads "
        '"open_clip:<name>", "transformers:<id or path>" and "tiny"'
    )
