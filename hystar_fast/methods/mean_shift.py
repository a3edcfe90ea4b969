"""A baseline without gradient steps: embeddings moved from the mean of their modality to the mean of the gallery."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hystar_fast.data.image_set import ImageSet, Record, Skipped, read_images
from hystar_fast.methods.frozen import Frozen
from hystar_fast.models.backbones import Backbone


class Means(nn.Module):
    """The means of a :class:`MeanShift`: of the gallery and of each query style [1 + styles, D], and of texts [D]."""

    def __init__(self, pictures: Tensor, texts: Tensor) -> None:
        super().__init__()
        self.pictures = nn.Parameter(pictures, requires_grad=False)
        self.texts = nn.Parameter(texts, requires_grad=False)


class MeanShift(Frozen):
    """e -> normalise(e + m_gallery - m_nearest): the frozen embedding without the offset between modalities.

    m_nearest is the nearest to e of the mean embeddings of the gallery and of each query style, in the training data.
    So no style is told at test time: a picture nearest to the gallery's mean stays, and any other is moved. A text is
    moved from the mean of texts. Before `fit` all means are zero, and it equals the frozen model.

    Args:
        backbone: the backbone to use; its parameters are frozen in place.
        styles: how many query styles the means of a saved method are of.
    """

    name = "mean_shift"

    def __init__(self, backbone: Backbone, *, styles: int = 0) -> None:
        super().__init__(backbone)
        dim = backbone.embed_dim
        self._set(torch.zeros(1 + styles, dim), torch.zeros(dim))

    def _set(self, pictures: Tensor, texts: Tensor) -> None:
        self.means = Means(pictures, texts)
        self.modules, self.settings = (self.model, self.means), {"styles": len(pictures) - 1}

    @torch.no_grad()
    def fit(self, images: ImageSet, styles: Sequence[str]) -> list[Skipped]:
        """Set the means to those of a data set, and return the pictures that could not be read.

        Args:
            images: the training part.
            styles: its query styles; "text" may be among them, and captions are used in any case.

        Raises:
            ValueError: the gallery or a style has no readable picture.
        """
        skipped: list[Skipped] = []
        listed = {style: images.of_style(style) for style in (images.gallery_style, *styles) if style != "text"}
        pictures = torch.stack([self._mean_of(images, records, skipped) for records in listed.values()])
        captions = [caption for record in images.gallery for caption in record.captions]
        texts = super().encode_text(captions).float().mean(0) if captions else pictures[0]
        self._set(pictures, texts.to(pictures))
        return skipped

    def _mean_of(self, images: ImageSet, records: Sequence[Record], skipped: list[Skipped]) -> Tensor:
        total, count = torch.zeros_like(self.means.texts), 0
        for rows, batch in read_images(images, records, self.resize, skipped):
            total += super().encode_image(batch.to(total.device)).float().sum(0)
            count += len(rows)
        if not count:
            raise ValueError(f"images must have readable pictures in {records[0].style!r}, got none in {images.name}")
        return total / count

    def encode_image(self, images: Tensor, style: Tensor | None = None) -> Tensor:
        found = super().encode_image(images)
        means = self.means.pictures.to(found.dtype)
        return F.normalize(found + means[0] - means[torch.cdist(found, means).argmin(dim=1)], dim=-1)

    @torch.no_grad()
    def encode_text(self, texts: Sequence[str]) -> Tensor:
        return F.normalize(super().encode_text(texts) + self.means.pictures[0] - self.means.texts, dim=-1)

    def trained_parameters(self) -> dict[str, Tensor]:
        return dict(self.means.named_parameters())
