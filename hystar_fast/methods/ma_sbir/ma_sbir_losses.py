"""Losses of MA-SBIR: pictures with their captions, and what vectors of modalities learn (Section 3, Eq. 1 to 9)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

DUPLICATES = ("masked", "negatives")
CONVERSIONS = ("additive", "normalised")
CLASSIFIED = ("all", "pair")
ORTHOS = ("dot", "elementwise")


def clip_loss(pictures: Tensor, texts: Tensor, labels: Tensor, tau: Tensor | float, duplicates: str) -> Tensor:
    """Return the contrastive loss of pictures and their captions, in both directions (Eq. 1 and 2).

    L = ½ mean_i [ -log softmax_j(z_i · t_j / τ)_i - log softmax_j(t_i · z_j / τ)_i ]

    With "negatives", items of one caption are negatives of each other, and L cannot fall below the mean of log n_c over
    items whose caption appears n_c times. With "masked" they are none, and a caption counts once among the texts,
    however often it appears: picture to text is classification over the captions of the batch.

    Args:
        pictures, texts: unit vectors [B, D].
        labels: int64 [B], the number of the caption of each item.
        tau: temperature.
        duplicates: one of `DUPLICATES`.

    Source: Lyou et al. 2024, Eq. 1 and 2.

    >>> unit, labels = torch.eye(3), torch.arange(3)
    >>> round(clip_loss(unit, unit, labels, 1.0, "masked").item(), 4)  # log(1 + 2 / e)
    0.5514
    """
    scores = pictures @ texts.mT / tau
    to_text, to_picture = scores, scores.mT
    if duplicates == "masked":
        same = labels[:, None] == labels
        own = torch.eye(len(labels), dtype=torch.bool, device=labels.device)
        to_picture = to_picture.masked_fill(same & ~own, -torch.inf)
        counted = scores - same.sum(0).to(scores.dtype).log()  # a caption's n_c columns sum to one
        to_text = torch.where(own, scores, counted.masked_fill(same, -torch.inf))
    rows = torch.arange(len(labels), device=labels.device)
    return (F.cross_entropy(to_text, rows) + F.cross_entropy(to_picture, rows)) / 2


def converted(vectors: Tensor, source: Tensor, target: Tensor, conversion: str = "additive") -> Tensor:
    """Return x - m_source + m_target (Eq. 3), or with "normalised" N(x - m_source) + m_target (Eq. 6); not normalised.

    Args:
        vectors: [..., D].
        source, target: modality vectors that broadcast to them.
        conversion: one of `CONVERSIONS`.

    Source: Lyou et al. 2024, Eq. 3 and 6.
    """
    semantics = vectors - source
    return (semantics if conversion == "additive" else F.normalize(semantics, dim=-1)) + target


def semantic_loss(pictures: Tensor, texts: Tensor, source: Tensor, text: Tensor) -> Tensor:
    """Return the mean of 1 - cos(z_img - m_k, z) + 1 - cos(z_txt - m_t, z), with z = z_img + z_txt (Eq. 4 and 5).

    Args:
        pictures, texts: unit vectors [B, D].
        source: [B, D], the modality vector of each picture.
        text: [D], that of texts.

    Gradients: through z too. It lies in [0, 4]: the paper's less its constant.
    """
    middle = pictures + texts
    return (distance(pictures - source, middle) + distance(texts - text, middle)).mean()


def reconstruction_loss(pictures: Tensor, texts: Tensor, source: Tensor, text: Tensor, conversion: str) -> Tensor:
    """Return the mean of 1 - cos(picture as text, z_txt) + 1 - cos(text as picture, z_img) (Eq. 6 and 7).

    The arguments are those of `semantic_loss`; `conversion` is one of `CONVERSIONS`.
    """
    as_text, as_picture = converted(pictures, source, text, conversion), converted(texts, text, source, conversion)
    return (distance(as_text, texts) + distance(as_picture, pictures)).mean()


def classification_loss(
    pictures: Tensor,
    texts: Tensor,
    kinds: Tensor,
    modalities: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    conversion: str = "additive",
    classify: str = "all",
) -> Tensor:
    """Return the cross-entropy of a linear classifier that tells the modality of converted vectors (Eq. 8).

    Args:
        pictures, texts: unit vectors [B, D].
        kinds: int64 [B], the modality of each picture.
        modalities: m [K, D]; the last one is of texts.
        weight, bias: [K, D] and [K], of the classifier.
        conversion: one of `CONVERSIONS`.
        classify: "all" converts every vector to every modality but its own; "pair" pictures to text and texts to the
            modality of their picture.

    Source: Lyou et al. 2024, Eq. 8, whose sign is missing.
    """
    K = len(modalities)
    text = kinds.new_full(kinds.shape, K - 1)

    def of(vectors: Tensor, sources: Tensor, others: Tensor) -> Tensor:
        targets = _others(sources, K) if classify == "all" else others[:, None]
        moved = converted(vectors[:, None], modalities[sources][:, None], modalities[targets], conversion)
        return modality_cross_entropy(moved, targets, weight, bias)

    return (of(pictures, kinds, text) + of(texts, text, kinds)) / 2


def orthogonality_loss(pictures: Tensor, texts: Tensor, modalities: Tensor, ortho: str = "dot") -> Tensor:
    """Return the mean of |z · m_j| over items and modalities, with z = N(z_img + z_txt) (Eq. 9).

    With "elementwise" it is the mean of Σ_d |z_d m_jd|, never less: that asks for disjoint dimensions.

    Args:
        pictures, texts: unit vectors [B, D].
        modalities: m [K, D].
        ortho: one of `ORTHOS`.
    """
    middle = F.normalize(pictures + texts, dim=-1)
    if ortho == "elementwise":
        return (middle.abs() @ modalities.abs().mT).mean()
    return (middle @ modalities.mT).abs().mean()


def modality_cross_entropy(moved: Tensor, kinds: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Return the mean cross-entropy of the classifier for converted vectors [P, Q, D] of modalities int64 [P, Q]."""
    logits = F.linear(F.normalize(moved, dim=-1), weight, bias)
    return F.cross_entropy(logits.flatten(0, 1), kinds.flatten())


def distance(a: Tensor, b: Tensor) -> Tensor:
    """Return 1 - cos(a, b) of vectors [..., D]."""
    return 1 - F.cosine_similarity(a, b, dim=-1)


def _others(kinds: Tensor, count: int) -> Tensor:
    """Return every modality but its own of each item, int64 [B, K - 1] in order."""
    places = torch.arange(count - 1, device=kinds.device)
    return places + (places >= kinds[:, None])
