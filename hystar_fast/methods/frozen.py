"""The frozen backbone: a CLIP without any training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from hystar_fast.methods.interface import Method
from hystar_fast.models.backbones import Backbone


class Frozen(Method):
    """Zero-shot retrieval with an unchanged backbone.

    Args:
        backbone: the backbone to use; its parameters are frozen in place.
    """

    name = "frozen"

    def __init__(self, backbone: Backbone) -> None:
        self.model: Any = backbone.requires_grad_(False).eval()
        self.resize, self.normalise, self.tokenizer = backbone.resize, backbone.normalise, backbone.tokenizer
        self.modules = (self.model,)

    def encode_image(self, images: Tensor, style: Tensor | None = None) -> Tensor:
        return F.normalize(self.model.encode_image(self.normalise(images)), dim=-1)

    @torch.no_grad()
    def encode_text(self, texts: Sequence[str]) -> Tensor:
        device = next(self.model.parameters()).device
        return F.normalize(self.model.encode_text(self.tokenizer(list(texts)).to(device)), dim=-1)
