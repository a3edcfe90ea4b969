"""The last projection of a CLIP's image tower, for a method that works on the pooled tokens before it."""

from __future__ import annotations

from typing import Any

from torch import nn

from hystar_fast.models.backbones.open_clip import OpenClipTower
from hystar_fast.models.backbones.tower import TowerBackbone
from hystar_fast.models.backbones.transformers import ClipTower


def drop_image_projection(backbone: TowerBackbone) -> None:
    """Remove the projection in place: pictures become pooled tokens [B, width] behind the last norm.

    Texts keep their own width; ``embed_dim`` is that of pictures.

    Raises:
        ValueError: a backbone that is no CLIP of open_clip (the tiny one included) or transformers, or without a
            projection.
    """
    visual: Any = getattr(backbone, "visual", None)
    tower = getattr(backbone, "tower", None)
    if isinstance(tower, OpenClipTower) and visual.proj is not None:
        visual.proj = None
        backbone.embed_dim = tower.widths(visual)[1]
    elif isinstance(tower, ClipTower) and isinstance(visual.visual_projection, nn.Linear):
        backbone.embed_dim = visual.visual_projection.in_features
        visual.visual_projection = nn.Identity()
    else:
        raise ValueError(
            "backbone must be a CLIP of open_clip or transformers whose image tower ends in a projection, got "
            f"{type(visual).__name__}"
        )
