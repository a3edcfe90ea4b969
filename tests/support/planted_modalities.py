"""A planted model of modalities: vectors of pictures and texts are a class plus a modality plus noise."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from hystar_fast.methods.conversion import Conversion
from hystar_fast.methods.ma_sbir.ma_sbir_config import MASBIRConfig
from hystar_fast.methods.ma_sbir.modality_vectors import ModalityVectors
from hystar_fast.retrieval.definitions import Metric, measure

D, SEEN, UNSEEN, ITEMS = 64, 40, 20, 12
LENGTH, NOISE = 0.8, 0.9
_MAP = Metric.parse("mAP@all")


@dataclass(frozen=True)
class Planted:
    """Unit vectors of classes, and three orthogonal modality vectors: photo, sketch, text.

    Attributes:
        skew: β; a photo also gets u β m_sketch with u uniform in [0, 1].
        spread: deviation of the strength of m_photo over photos.
    """

    classes: Tensor
    modalities: Tensor
    generator: torch.Generator
    skew: float = 0.0
    spread: float = 0.0

    @classmethod
    def draw(cls, seed: int, skew: float = 0.0, spread: float = 0.0) -> Planted:
        generator = torch.Generator().manual_seed(seed)
        basis, _ = torch.linalg.qr(torch.randn(D, D, generator=generator))
        found = torch.randn(SEEN + UNSEEN, D, generator=generator)
        modalities = basis[:3]
        classes = F.normalize(found - found @ modalities.mT @ modalities, dim=-1)
        return cls(classes, LENGTH * modalities, generator, skew, spread)

    def pictures(self, labels: Tensor, kind: int) -> Tensor:
        """Return unit vectors [n, D] of photos (0) or sketches (1) of classes."""
        noise = torch.randn(len(labels), D, generator=self.generator) * NOISE / D**0.5
        strength = torch.ones(len(labels), 1)
        added = torch.zeros(len(labels), D)
        if kind == 0:
            strength += self.spread * torch.randn(len(labels), 1, generator=self.generator)
            added = self.skew * torch.rand(len(labels), 1, generator=self.generator) * self.modalities[1]
        return F.normalize(self.classes[labels] + strength * self.modalities[kind] + added + noise, dim=-1)

    def texts(self, labels: Tensor) -> Tensor:
        return F.normalize(self.classes[labels] + self.modalities[2], dim=-1)


def planted_scores(planted: Planted, steps: int, own: MASBIRConfig, seed: int) -> dict[str, float]:
    """Train the vectors on seen classes, and return mAP@all of sketches of unseen ones in photos.

    The keys are "original", "mean shift" (by means of the seen classes) and "learned".
    """
    labels = torch.arange(SEEN).repeat_interleave(ITEMS)
    train = [planted.pictures(labels, kind) for kind in (0, 1)]
    asked = torch.arange(SEEN, SEEN + UNSEEN).repeat_interleave(ITEMS)
    gallery, queries = (planted.pictures(asked, kind) for kind in (0, 1))
    torch.manual_seed(seed)
    modalities = ModalityVectors(own, 2, D)
    optimizer = torch.optim.Adam(modalities.parameters(), lr=own.modality_lr)
    vectors, texts = torch.cat(train), planted.texts(labels.repeat(2))
    kinds = torch.arange(2).repeat_interleave(len(labels))
    for _ in range(steps):
        rows = torch.randint(0, len(vectors), (128,), generator=planted.generator)
        optimizer.zero_grad(set_to_none=True)
        modalities.losses(vectors[rows], texts[rows], labels.repeat(2)[rows], kinds[rows], 0.07)["loss"].backward()
        optimizer.step()
    means = dict(zip(("photo", "sketch"), (part.mean(0) for part in train), strict=True))
    learned = dict(zip(("photo", "sketch"), modalities.vectors.detach(), strict=False))
    ways = {"mean shift": Conversion(means), "learned": Conversion(learned)}
    moved = {"original": queries} | {name: way(queries, "sketch", "photo") for name, way in ways.items()}
    return {
        name: measure(vectors, gallery, asked, asked, [_MAP]).values[_MAP].mean().item()
        for name, vectors in moved.items()
    }
