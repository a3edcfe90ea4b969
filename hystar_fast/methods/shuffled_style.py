"""Hystar without the style: every picture is encoded with the style of another one, as a control."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from hystar_fast.methods.hystar_method import HystarMethod
from hystar_fast.models.hystar import Hystar

BANK = 96  # style vectors that are kept for evaluation: a batch of the demo's training


class ShuffledStyle(HystarMethod):
    """Hystar whose styles are permuted within each training batch, queries and gallery pictures together.

    A batch of an evaluation has one style only, so there the styles are drawn from those of the last training batch,
    which the adapter keeps. The draws depend on the place in the batch alone.

    Args:
        model: a model with a style.
        bank: how many style vectors are kept.

    Raises:
        ValueError: the model modulates no block, and so has no style.
    """

    def __init__(self, model: Hystar, *, bank: int = BANK) -> None:
        super().__init__(model)
        if model.extractor is None:
            raise ValueError("style_order=shuffled must have a model with a style, got blocks=()")
        self.computes_style_in_encode = False
        self.settings: Mapping[str, int] = {"bank": bank}
        self.bank = nn.ParameterDict({"styles": torch.zeros(bank, model.extractor.dim)}).requires_grad_(False)
        self.modules = (model, self.bank)

    def encode_image(self, images: Tensor, style: Tensor | None = None) -> Tensor:
        kept = self.bank["styles"]
        if self.model.training:
            own = self.style(images) if style is None else style
            assert own is not None
            kept.data.copy_(own[torch.arange(len(kept)) % len(own)])
            return super().encode_image(images, own[torch.randperm(len(own))])
        generator = torch.Generator().manual_seed(0)
        rows = torch.randint(len(kept), (len(images),), generator=generator)
        return super().encode_image(images, kept[rows])

    def trained_parameters(self) -> dict[str, Tensor]:
        return super().trained_parameters() | dict(self.bank.named_parameters())
