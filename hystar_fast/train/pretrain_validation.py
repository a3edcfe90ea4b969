"""Frozen R@1 on the validation concepts while the tiny backbone is pretrained, registered and displaced."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from hystar_fast.data.displacement import displace
from hystar_fast.data.emoji import HARD_STYLES, load_emoji
from hystar_fast.data.image_set import ImageSet, read_images
from hystar_fast.models.tiny import NORMALISE, RESIZE, TinyTokenizer
from hystar_fast.train.pretrain_towers import Weights, encode_images, encode_texts

DISPLACEMENT = 0.15


class Validation:
    """Compute R@1 in per cent of the val split of the embedded drawings; nothing here reads the test split."""

    def __init__(self) -> None:
        images = load_emoji("val")
        displaced = displace(images, DISPLACEMENT)
        self._gallery = _read(images, images.gallery_style)
        row = {record.instance: i for i, record in enumerate(images.gallery)}
        self._names = [record.captions[0] for record in images.gallery]
        self._targets: dict[str, Tensor] = {}
        self._queries: dict[str, dict[str, Tensor]] = {"registered": {}, "displaced": {}}
        for style in images.query_styles:
            self._targets[style] = torch.tensor([row[record.instance] for record in images.of_style(style)])
            self._queries["registered"][style] = _read(images, style)
            self._queries["displaced"][style] = _read(displaced, style)

    @torch.no_grad()
    def __call__(self, weights: Weights, tokenizer: TinyTokenizer) -> dict[str, float | dict[str, float]]:
        """Return R@1 of each style and of "hard", their mean, by placement; and that of "text"."""
        gallery = _embed(weights, self._gallery)
        found: dict[str, float | dict[str, float]] = {}
        for placement, queries in self._queries.items():
            scores = {s: _recall(_embed(weights, x), gallery, self._targets[s]) for s, x in queries.items()}
            scores["hard"] = sum(scores[style] for style in HARD_STYLES) / len(HARD_STYLES)
            found[placement] = {style: round(score, 1) for style, score in scores.items()}
        device = weights["logit_scale"].device
        texts = F.normalize(encode_texts(weights, tokenizer(self._names).to(device)), dim=-1)
        return {**found, "text": round(_recall(texts, gallery, torch.arange(len(texts))), 1)}


def _read(images: ImageSet, style: str) -> Tensor:
    return NORMALISE(torch.cat([part for _, part in read_images(images, images.of_style(style), RESIZE, [])]))


def _embed(weights: Weights, pictures: Tensor) -> Tensor:
    device = weights["logit_scale"].device
    parts = [encode_images(weights, part.to(device)) for part in pictures.split(64)]
    return F.normalize(torch.cat(parts), dim=-1)


def _recall(queries: Tensor, gallery: Tensor, targets: Tensor) -> float:
    return 100 * ((queries @ gallery.T).argmax(dim=1).cpu() == targets).float().mean().item()
