"""Losses of FGAN: the fine-grained contrast of region embeddings and the alignment of label distributions.

All of them are computed in float32 or better, whatever the type of their inputs and whether autocast is on.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

TRIPLETS = ("selective", "all")
CONTRASTS = ("triplet", "pairwise", "classify")
ANCHORS = ("both", "image")
RECONSTRUCTIONS = ("mse", "l2")


class Contrast(NamedTuple):
    """Two scalars: of the triplets with a negative (Eq. 15), and of those with a semi-positive (Eq. 17)."""

    negative: Tensor
    semi_positive: Tensor


def cosine_distances(images: Tensor, texts: Tensor) -> Tensor:
    """Return 1 - cosine of every image [M, d] and every text [M, d], as [M, M]."""
    images, texts = _precise(images), _precise(texts)
    with torch.autocast(images.device.type, enabled=False):
        return 1 - F.normalize(images, dim=-1) @ F.normalize(texts, dim=-1).mT


def fine_grained_contrast(
    distances: Tensor,
    classes: Tensor,
    *,
    margin: float = 0.5,
    semi_margin: float = 0.5,
    anchors: str = "both",
    triplets: str = "selective",
) -> Contrast:
    """Return the loss of the triplets within a batch of pairs (FGCL).

    With D_ij the distance of image i and text j: a text is positive for j = i, semi-positive for another pair of the
    same class, and negative for a pair of another class.

    ``negative = 1/M sum_i [margin + D_ii - min_{negative j} D_ij]_+`` (Eq. 15); an anchor without a negative adds 0.
    ``semi_positive = 1/M' sum_i [semi_margin + D_ii - max_{semi-positive j} D_ij]_+`` (Eq. 17) over the M' anchors that
    have a semi-positive; 0 if there is none. The maximum lets all semi-positives but the farthest stay near.

    Args:
        distances: [M, M], images in rows and texts in columns.
        classes: int [M].
        margin, semi_margin: m1 and m2.
        anchors: "both" averages over images and texts as anchors, "image" takes the images alone, as the paper writes.
        triplets: "selective", as above, or "all": the mean over every triplet in place of the nearest and farthest.

    Gradients: for `distances`, and with "selective" at the chosen pairs alone.

    Raises:
        ValueError: `distances` is not square, `classes` does not fit, or an option is unknown.

    Source: Ge et al. 2025, Eq. 12-18.

    >>> distances = torch.tensor([[0.0, 0.4], [0.9, 0.0]])
    >>> fine_grained_contrast(distances, torch.tensor([0, 1]), anchors="image").negative
    tensor(0.0500)
    """
    check_batch(distances, classes)
    if anchors not in ANCHORS:
        raise ValueError(f"anchors must be one of {ANCHORS}, got {anchors!r}")
    if triplets not in TRIPLETS:
        raise ValueError(f"triplets must be one of {TRIPLETS}, got {triplets!r}")
    distances = _precise(distances)
    same = classes[:, None] == classes[None]
    semi = same & ~torch.eye(len(classes), dtype=torch.bool, device=classes.device)
    anchored = _selective if triplets == "selective" else _all_triplets
    found = [anchored(d, ~same, semi, margin, semi_margin) for d in _sides(distances, anchors)]
    return Contrast(*(torch.stack(terms).mean() for terms in zip(*found, strict=True)))


def _sides(distances: Tensor, anchors: str) -> tuple[Tensor, ...]:
    return (distances, distances.mT) if anchors == "both" else (distances,)


def _selective(distances: Tensor, negative: Tensor, semi: Tensor, margin: float, semi_margin: float) -> Contrast:
    own = distances.diagonal()
    nearest = distances.masked_fill(~negative, math.inf).min(1).values
    farthest = distances.masked_fill(~semi, -math.inf).max(1).values
    has_semi = semi.any(1)
    farthest = torch.where(has_semi, farthest, math.inf)
    between = F.relu(semi_margin + own - farthest).sum() / has_semi.sum().clamp(min=1)
    return Contrast(F.relu(margin + own - nearest).mean(), between)


def _all_triplets(distances: Tensor, negative: Tensor, semi: Tensor, margin: float, semi_margin: float) -> Contrast:
    nearer = distances.diagonal()[:, None] - distances
    return Contrast(_mean_over(F.relu(margin + nearer), negative), _mean_over(F.relu(semi_margin + nearer), semi))


def pairwise_contrast(distances: Tensor, classes: Tensor, *, margin: float = 0.5) -> Tensor:
    """Return ``mean_i D_ii + mean_{negative i, j} [margin - D_ij]_+``: pairs in place of triplets (Table 4).

    It is the same for images and for texts as anchors, and does not touch semi-positive pairs.

    Args:
        distances: [M, M].
        classes: int [M].
        margin: negatives at this distance or beyond add nothing.

    Source: Ge et al. 2025, section 5.3.3, which names the loss and gives no formula.

    >>> pairwise_contrast(torch.tensor([[0.1, 0.4], [0.9, 0.3]]), torch.tensor([0, 1]))
    tensor(0.2500)
    """
    check_batch(distances, classes)
    distances = _precise(distances)
    negative = classes[:, None] != classes[None]
    return distances.diagonal().mean() + _mean_over(F.relu(margin - distances), negative)


def classification_contrast(image_logits: Tensor, text_logits: Tensor, classes: Tensor) -> Tensor:
    """Return the mean cross entropy of the logits [M, classes] of both sides, in place of a contrast (Table 4)."""
    return (F.cross_entropy(_precise(image_logits), classes) + F.cross_entropy(_precise(text_logits), classes)) / 2


def alignment(teacher: Tensor, image: Tensor, text: Tensor, *, factor: float = 0.5) -> Tensor:
    """Return ``factor (KL(t||g_v) + KL(t||g_t) + KL(g_v||g_t) + KL(g_t||g_v))``, summed over labels, mean over pairs.

    Args:
        teacher: t, probabilities [M, C]; zeros are allowed, as 0 log 0 = 0.
        image, text: log g_v and log g_t [M, C], from log_softmax.
        factor: 1/2 in the paper.

    Gradients: for `image` and `text`, through both arguments of the last two divergences; none for `teacher`.

    Source: Ge et al. 2025, Eq. 24-26.

    >>> same = torch.tensor([[0.25, 0.75]])
    >>> alignment(same, same.log(), same.log()).item()
    0.0
    """
    teacher, image, text = _precise(teacher.detach()), _precise(image), _precise(text)
    if not teacher.shape == image.shape == text.shape:
        shapes = " and ".join(str(list(t.shape)) for t in (teacher, image, text))
        raise ValueError(f"teacher, image and text must have one shape [M, C], got {shapes}")
    taught = 2 * torch.special.xlogy(teacher, teacher) - teacher * (image + text)
    between = (image.exp() - text.exp()) * (image - text)
    return factor * (taught + between).sum(-1).mean()


def standard_normal_divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """Return the divergence of N(mean, exp(log_variance)) [M, d] from N(0, 1), summed over d, mean over M (Eq. 23).

    >>> standard_normal_divergence(torch.zeros(2, 3), torch.zeros(2, 3)).item()
    0.0
    """
    mean, log_variance = _precise(mean), _precise(log_variance)
    return (mean.square() + log_variance.exp() - 1 - log_variance).sum(-1).mean() / 2


def reconstruction_error(found: Tensor, target: Tensor, kind: str = "mse") -> Tensor:
    """Return the error of reconstructions [M, d]: "mse", the mean square, or "l2", the mean Euclidean norm (Eq. 22)."""
    if kind not in RECONSTRUCTIONS:
        raise ValueError(f"kind must be one of {RECONSTRUCTIONS}, got {kind!r}")
    difference = _precise(found) - _precise(target)
    return difference.square().mean() if kind == "mse" else torch.linalg.vector_norm(difference, dim=-1).mean()


def check_batch(distances: Tensor, classes: Tensor) -> None:
    """Raise a ValueError unless `distances` is [M, M] and `classes` an integer [M]."""
    if distances.ndim != 2 or distances.shape[0] != distances.shape[1] or not len(distances):
        raise ValueError(f"distances must have shape [M, M] with M of at least 1, got {list(distances.shape)}")
    if classes.shape != distances.shape[:1] or classes.is_floating_point():
        raise ValueError(
            f"classes must be integers [{len(distances)}], one a pair, got {classes.dtype} {list(classes.shape)}"
        )


def _mean_over(values: Tensor, chosen: Tensor) -> Tensor:
    """Return the mean of the chosen values, and 0 where none is."""
    return torch.where(chosen, values, 0.0).sum() / chosen.sum().clamp(min=1)


def _precise(values: Tensor) -> Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))
