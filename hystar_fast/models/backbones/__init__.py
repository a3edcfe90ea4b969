"""Backbones of Hystar: vision transformers of open_clip and transformers, ALBEF, and the packaged tiny model."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from torch import nn

from hystar_fast.models.adapter_format import not_finite
from hystar_fast.models.backbones.base import Backbone
from hystar_fast.models.backbones.tower import TowerBackbone
from hystar_fast.models.config import HystarConfig

if TYPE_CHECKING:
    from hystar_fast.models.backbones.clip_encoders import CLIPEncoders

__all__ = ["Backbone", "create_backbone", "create_encoders", "move_weights"]


def create_backbone(config: HystarConfig) -> TowerBackbone:
    """Create the frozen backbone of `config`, in evaluation mode.

    Raises:
        ValueError: the backbone cannot be adapted, or its weights cannot be loaded or are not finite; the message names
            the field.
    """
    backbone = _load(config)
    _check_finite(backbone, config)
    return backbone


def create_encoders(config: HystarConfig) -> TowerBackbone | CLIPEncoders:
    """Create the frozen backbone of `config` for a method that adapts no block: a ResNet of open_clip is taken too.

    Raises:
        ValueError: as of `create_backbone`.
    """
    from hystar_fast.models.backbones.clip_encoders import is_resnet, load_clip_encoders

    prefix, _, name = config.backbone.partition(":")
    if prefix != "open_clip" or not is_resnet(name):
        return create_backbone(config)
    encoders = load_clip_encoders(name, config.pretrained, config.image_size, config.pretrained_tag)
    _check_finite(encoders, config)
    return encoders


def _check_finite(backbone: nn.Module, config: HystarConfig) -> None:
    broken = not_finite(backbone.named_parameters())
    if broken:
        raise ValueError(
            f"backbone {config.backbone!r} with pretrained={config.pretrained!r} must have finite weights, got NaN or "
            f"inf in {broken}"
        )


def _load(config: HystarConfig) -> TowerBackbone:
    prefix, _, name = config.backbone.partition(":")
    if prefix == "open_clip":
        from hystar_fast.models.backbones.open_clip import load_open_clip

        return load_open_clip(name, config.pretrained, config.image_size, config.pretrained_tag)
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


def move_weights(config: HystarConfig, **changes: Any) -> HystarConfig:
    """Return `config` with other fields, as for weights that lie in another place now.

    Where the new `pretrained` is a file, `pretrained_tag` becomes the tag of the old one: its activation and its pixel
    statistics are kept.

    Raises:
        ValueError, TypeError: a field of `changes` is unknown or has the wrong value.
    """
    if not {"pretrained", "backbone"} & set(changes) or "pretrained_tag" in changes:
        return HystarConfig.from_dict({**config.to_dict(), **changes})
    moved = HystarConfig.from_dict({**config.to_dict(), **changes, "pretrained_tag": None})
    if not moved.backbone.startswith("open_clip:") or moved.pretrained is None:
        return moved
    from hystar_fast.models.backbones.open_clip import tags_of

    tags = tags_of(moved.backbone.removeprefix("open_clip:"))
    if moved.pretrained in tags:
        return moved
    return replace(moved, pretrained_tag=config.pretrained if config.pretrained in tags else config.pretrained_tag)
