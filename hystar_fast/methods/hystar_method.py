"""Hystar behind the interface of all methods."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from hystar_fast.methods.interface import Method
from hystar_fast.models.config import HystarConfig
from hystar_fast.models.hystar import Hystar
from hystar_fast.models.style import PrefixStyle
from hystar_fast.nn.losses import StyleNCELoss, style_nce_options


def create_criterion(config: HystarConfig) -> StyleNCELoss:
    """Build the StyleNCE loss of a configuration."""
    return StyleNCELoss(**style_nce_options(config))


class HystarMethod(Method):
    """Dynamic offsets of the qkv weights by each image's style, static offsets of the MLPs, StyleNCE.

    Args:
        model: the model to train or to use; its configuration sets the loss.
    """

    name = "hystar"

    def __init__(self, model: Hystar) -> None:
        self.model = model
        self.config, self.fingerprints = model.config, model.fingerprints
        self.resize, self.normalise = model.backbone.resize, model.backbone.normalise
        self.criterion = create_criterion(model.config)
        self.computes_style_in_encode = isinstance(model.extractor, PrefixStyle)
        self.modules = (model,)

    def encode_image(self, images: Tensor, style: Tensor | None = None) -> Tensor:
        return self.model.encode_image(self.normalise(images), style)

    @torch.no_grad()
    def encode_text(self, texts: Sequence[str]) -> Tensor:
        device = next(self.model.parameters()).device
        return self.model.encode_text(self.model.tokenizer(list(texts)).to(device))

    def style(self, images: Tensor) -> Tensor | None:
        return None if self.model.extractor is None else self.model.style(self.normalise(images))

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        groups = {
            "static": [parameter for _, parameter in self.model.static_parameters()],
            "dynamic": [parameter for _, parameter in self.model.dynamic_parameters()],
        }
        return {name: members for name, members in groups.items() if members}

    def loss(self, query: Tensor, target: Tensor) -> Tensor:
        return self.criterion(query, target)
