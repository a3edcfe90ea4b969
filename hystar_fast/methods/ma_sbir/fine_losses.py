"""Losses of fine-grained MA-SBIR: a sketch, its photo and their caption (Section 3.4, Eq. 10 to 13).

The three vectors of a pair come together, ``vectors`` [3, B, D] of sketch, photo and text, and so do the numbers of
their modalities, ``kinds`` int64 [3, B]. A conversion is a place among the three that moves to the modality of another.
The paper defines these losses for a picture and its text only; with three, sums are scaled to two terms.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hystar_fast.methods.ma_sbir.ma_sbir_losses import clip_loss, converted, distance, modality_cross_entropy

SKETCH, PHOTO, TEXT = range(3)
FINE_PAIRS = {
    "all": tuple((i, j) for i in range(3) for j in range(3) if i != j),
    "sketch_photo": ((SKETCH, PHOTO), (PHOTO, SKETCH)),
}
"""Name -> the conversions, from a place to the modality of another."""


def pair_clip_loss(
    vectors: Tensor, captions: Tensor, instances: Tensor, tau: Tensor | float, duplicates: str
) -> tuple[Tensor, Tensor]:
    """Return L_clip-img of sketches and photos (Eq. 10), and L_clip-txt, the mean of Eq. 1 for sketches and photos.

    Args:
        vectors: unit vectors [3, B, D].
        captions, instances: int64 [B], the numbers of the caption and of the photo of each pair.
        tau: temperature.
        duplicates: pairs of one photo, and items of one caption, are "masked" or "negatives".

    Source: Lyou et al. 2024, Eq. 10 and 11.
    """
    sketch, photo, text = vectors
    by_text = [clip_loss(pictures, text, captions, tau, duplicates) for pictures in (sketch, photo)]
    return clip_loss(sketch, photo, instances, tau, duplicates), (by_text[0] + by_text[1]) / 2


def fine_semantic_loss(vectors: Tensor, modalities: Tensor, kinds: Tensor) -> Tensor:
    """Return 2/3 of the mean of Σ_i 1 - cos(z_i - m_i, z), with z the sum of the three (Eq. 5).

    Args:
        vectors: unit vectors [3, B, D].
        modalities: m [K, D].
        kinds: int64 [3, B].
    """
    semantics = vectors - modalities[kinds]
    return distance(semantics, vectors.sum(0).expand_as(vectors)).sum(0).mean() * (2 / 3)


def fine_reconstruction_loss(
    vectors: Tensor, modalities: Tensor, kinds: Tensor, conversion: str = "additive", pairs: str = "all"
) -> Tensor:
    """Return twice the mean, over the conversions of each pair, of 1 - cos(z_i as j, z_j) (Eq. 6 and 7).

    Args:
        vectors, modalities, kinds: as of `fine_semantic_loss`.
        conversion: one of `CONVERSIONS`.
        pairs: one of `FINE_PAIRS`.
    """
    moved, places = _moved(vectors, modalities, kinds, conversion, pairs)
    return 2 * distance(moved, vectors[places]).mean()


def fine_classification_loss(
    vectors: Tensor,
    modalities: Tensor,
    kinds: Tensor,
    weight: Tensor,
    bias: Tensor,
    conversion: str = "additive",
    pairs: str = "all",
) -> Tensor:
    """Return the mean cross-entropy of a linear classifier that tells the modality of converted vectors (Eq. 8).

    Args:
        vectors, modalities, kinds: as of `fine_semantic_loss`.
        weight, bias: [K, D] and [K], of the classifier.
        conversion, pairs: as of `fine_reconstruction_loss`.
    """
    moved, places = _moved(vectors, modalities, kinds, conversion, pairs)
    return modality_cross_entropy(moved, kinds[places], weight, bias)


def _moved(vectors: Tensor, modalities: Tensor, kinds: Tensor, conversion: str, pairs: str) -> tuple[Tensor, list[int]]:
    """Return converted vectors [P, B, D], not normalised, and the place of the target of each of the P conversions."""
    sources, targets = ([pair[side] for pair in FINE_PAIRS[pairs]] for side in (0, 1))
    m = modalities[kinds]
    return converted(vectors[sources], m[sources], m[targets], conversion), targets


def total_loss(terms: dict[str, Tensor], weights: dict[str, float], clip_img: float) -> Tensor:
    """Return L = λ_ci L_clip-img + (1 - λ_ci) L_clip-txt + Σ λ L of the other terms that have a weight (Eq. 11 and 13).

    Args:
        terms: "clip_img", "clip_txt" and those of `weights` with a weight above 0.
        weights: of "ps", "sem", "mc", "rec" and "ortho".
        clip_img: λ_ci, between 0 and 1.

    >>> one = torch.tensor(1.0)
    >>> total_loss({"clip_img": one, "clip_txt": 3 * one, "ps": 2 * one}, {"ps": 0.5, "mc": 0.0}, 0.5)
    tensor(3.)
    """
    total = torch.zeros_like(terms["clip_img"])
    for name, weight in {"clip_img": clip_img, "clip_txt": 1 - clip_img, **weights}.items():
        if weight:
            total = total + weight * terms[name]
    return total
