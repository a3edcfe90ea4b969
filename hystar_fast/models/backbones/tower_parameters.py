"""Parameters of the two towers of a CLIP, for a method that trains them."""

from __future__ import annotations

from torch import nn

from hystar_fast.models.backbones.base import Backbone
from hystar_fast.models.backbones.tower import TowerBackbone

_TRANSFORMERS = {"image": ("vision_model.", "visual_projection."), "text": ("text_model.", "text_projection.")}
_SCALES = ("logit_scale", "logit_bias")


def tower_parameters(backbone: Backbone, tower: str) -> list[nn.Parameter]:
    """Return the parameters of a tower with its projection; those of the scale of the logits belong to neither.

    Args:
        backbone: a CLIP of open_clip (the tiny one included) or transformers.
        tower: "image" or "text".

    Raises:
        ValueError: another name, or another kind of backbone.
    """
    if tower not in ("image", "text"):
        raise ValueError(f"tower must be 'image' or 'text', got {tower!r}")
    if isinstance(getattr(backbone, "clip", None), nn.Module) and isinstance(backbone, TowerBackbone):
        image = {id(parameter) for parameter in backbone.visual.parameters()}
        named = backbone.get_submodule("clip").named_parameters()
        return [p for name, p in named if name not in _SCALES and (id(p) in image) == (tower == "image")]
    model = getattr(backbone, "model", None)
    if getattr(getattr(model, "config", None), "model_type", "") == "clip" and isinstance(model, nn.Module):
        return [p for name, p in model.named_parameters() if name.startswith(_TRANSFORMERS[tower])]
    raise ValueError(f"backbone must be a CLIP of open_clip or transformers to train its towers, got {backbone!r:.60}")
