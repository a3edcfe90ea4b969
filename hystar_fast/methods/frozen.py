"""The frozen backbone: a CLIP as it is, with nothing trained."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from hystar_fast.methods.inputs import TensorPreprocess
from hystar_fast.methods.interface import Method


class Frozen(Method):
    """Zero-shot retrieval with an unchanged CLIP.

    Args:
        model: has ``encode_image`` and ``encode_text``; its parameters are frozen here.
        preprocess: its preprocessing, PIL image -> [3, S, S].
        tokenizer: list of texts -> int64 tokens.
    """

    name = "frozen"
    preprocess: TensorPreprocess

    def __init__(
        self, model: nn.Module, preprocess: Callable[[Image.Image], Tensor], tokenizer: Callable[[list[str]], Tensor]
    ) -> None:
        self.model: Any = model.requires_grad_(False).eval()
        self.preprocess = TensorPreprocess(preprocess)
        self.tokenizer = tokenizer
        self.modules = (self.model,)

    def encode_image(self, images: Tensor, style: Tensor | None = None) -> Tensor:
        return F.normalize(self.model.encode_image(self.preprocess(images)), dim=-1)

    @torch.no_grad()
    def encode_text(self, texts: Sequence[str]) -> Tensor:
        device = next(self.model.parameters()).device
        return F.normalize(self.model.encode_text(self.tokenizer(list(texts)).to(device)), dim=-1)
