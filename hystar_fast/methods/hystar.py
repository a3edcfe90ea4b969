"""Hystar behind the harness's interface."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from hystar_fast.methods.inputs import TensorPreprocess
from hystar_fast.methods.interface import Method
from hystar_fast.models.config import HystarConfig
from hystar_fast.models.hystar import Hystar
from hystar_fast.models.style import PrefixStyle
from hystar_fast.nn.losses import StyleNCELoss, style_nce_options


def criterion(config: HystarConfig) -> StyleNCELoss:
    """The StyleNCE loss a configuration describes."""
    return StyleNCELoss(**style_nce_options(config))


class HystarMethod(Method):
    """Dynamic offsets of the qkv weights by each image's style, static offsets of the MLPs, StyleNCE.

    Args:
        model: the model to train or to use; its configuration says which loss.
    """

    name = "hystar"
    preprocess: TensorPreprocess

    def __init__(self, model: Hystar) -> None:
        self.model = model
        self.config = model.config
        self.preprocess = TensorPreprocess(model.preprocess)
        self.criterion = criterion(model.config)
        self.reads_style_on_the_way = isinstance(model.extractor, PrefixStyle)
        self.modules = (model,)

    def encode_image(self, images: Tensor, style: Tensor | None = None) -> Tensor:
        return self.model.encode_image(self.preprocess(images), style)

    @torch.no_grad()
    def encode_text(self, texts: Sequence[str]) -> Tensor:
        device = next(self.model.parameters()).device
        return self.model.encode_text(self.model.tokenizer(list(texts)).to(device))

    def style(self, images: Tensor) -> Tensor | None:
        return None if self.model.extractor is None else self.model.style(self.preprocess(images))

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        groups = {
            "static": [parameter for _, parameter in self.model.static_parameters()],
            "dynamic": [parameter for _, parameter in self.model.dynamic_parameters()],
        }
        return {name: members for name, members in groups.items() if members}

    def loss(self, query: Tensor, target: Tensor) -> Tensor:
        return self.criterion(query, target)
