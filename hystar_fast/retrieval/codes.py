"""Binary codes of embeddings: iterative quantisation or signs, ranked by Hamming distance.

Codes of b bits have b + 1 distances, so most of a ranking is ties, and how ties are ordered decides the figure. Both
rules are given: `TIES_AGAINST` ranks an irrelevant item before a relevant one at the same distance, as all metrics of
this package do, and `TIES_MEAN` is the mean over random orders of the gallery. A sort that keeps the order of the
folders, by category, is no rule.

Source of iterative quantisation: Gong and Lazebnik, "Iterative Quantization: A Procrustean Approach to Learning Binary
Codes", CVPR 2011.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations

import torch
from torch import Tensor

from hystar_fast.retrieval.definitions import Measured, Metric, measure

CODES = ("itq", "sign")
TIES_AGAINST, TIES_MEAN = "against", "mean"
TIES = (TIES_AGAINST, TIES_MEAN)
ORDERS = 10
ITERATIONS = 50
_EXACT = 6  # items, of which all orders are taken


@dataclass(frozen=True)
class IterativeQuantisation:
    """A fitted quantiser.

    Attributes:
        mean: [D], of the vectors it was fitted on.
        projection: [D, bits], the principal directions, rotated.
        losses: ||B - V R||² before each alternation and after the last.
    """

    mean: Tensor
    projection: Tensor
    losses: tuple[float, ...]

    def encode(self, vectors: Tensor, *, mean: Tensor | None = None) -> Tensor:
        """Return codes, bool [n, bits], of vectors [n, D]; centred by `mean` [D] instead of the fitted one if given."""
        return (vectors.double() - (self.mean if mean is None else mean.double())) @ self.projection > 0


def fit_itq(vectors: Tensor, bits: int, *, seed: int = 0, iterations: int = ITERATIONS) -> IterativeQuantisation:
    """Fit iterative quantisation: centre, project to `bits` principal directions, and rotate towards the signs.

    min over R with RᵀR = 1 of ||B - V R||², by turns for B = sign(V R) and for R = (U Wᵀ)ᵀ with BᵀV = U S Wᵀ.

    Args:
        vectors: floating point [n, D], n above `bits`.
        bits: at most D.
        seed: of the first rotation.
        iterations: alternations.

    Raises:
        ValueError: `bits` is not between 1 and D, or there are too few vectors.
    """
    count, width = vectors.shape
    if not 1 <= bits <= width:
        raise ValueError(f"bits must be between 1 and {width}, the width of the embeddings, got {bits}")
    if count <= bits:
        raise ValueError(f"vectors must be more than {bits} to fit codes of as many bits, got {count}")
    mean = vectors.double().mean(0)
    centred = vectors.double() - mean
    directions = torch.linalg.eigh(centred.mT @ centred).eigenvectors.flip(1)[:, :bits]
    projected = centred @ directions
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(bits, bits, dtype=torch.float64, generator=generator).to(projected.device)
    rotation = torch.linalg.qr(drawn).Q
    losses = []
    for _ in range(iterations):
        codes = _signs(projected @ rotation)
        losses.append((codes - projected @ rotation).square().sum().item())
        u, _, wh = torch.linalg.svd(codes.mT @ projected)
        rotation = (u @ wh).mT
    rotated = projected @ rotation
    losses.append((_signs(rotated) - rotated).square().sum().item())
    return IterativeQuantisation(mean, directions @ rotation, tuple(losses))


def sign_codes(vectors: Tensor) -> Tensor:
    """Return bool [n, D], True where a number of a vector [n, D] is above 0."""
    return vectors > 0


def hamming_distances(queries: Tensor, gallery: Tensor) -> Tensor:
    """Return the number of different bits, int64 [N, M], of codes bool [N, bits] and [M, bits].

    Example:
        >>> codes = torch.tensor([[True, True], [True, False], [False, False]])
        >>> hamming_distances(codes[:1], codes).tolist()
        [[0, 1, 2]]
    """
    _check(queries, gallery)
    return ((queries.shape[1] - _pm1(queries) @ _pm1(gallery).mT) / 2).round().long()


def measure_codes(
    queries: Tensor,
    gallery: Tensor,
    query_labels: Tensor,
    gallery_labels: Tensor,
    metrics: Sequence[Metric],
    *,
    ties: str = TIES_AGAINST,
    orders: int = ORDERS,
) -> Measured:
    """Compute metrics of rankings by Hamming distance.

    Args:
        queries: codes, bool [N, bits].
        gallery: codes, bool [M, bits].
        query_labels: int64 [N], as for `measure`.
        gallery_labels: int64 [M].
        metrics: definitions.
        ties: "against" or "mean"; the latter is exact for a gallery of up to six items, whose orders are all taken.
            `Measured.first` is that of "against" for both.
        orders: random orders of the gallery for "mean", with the seeds 0, 1, ….

    Raises:
        TypeError, ValueError: as `measure`; TypeError for codes that are not bool, ValueError for another rule.
    """
    if ties not in TIES:
        raise ValueError(f"ties must be one of {TIES}, got {ties!r}")
    _check(queries, gallery)
    against = measure(_pm1(queries), _pm1(gallery), query_labels, gallery_labels, metrics)
    if ties == TIES_AGAINST or not len(gallery):
        return against
    sums = {metric: torch.zeros_like(values) for metric, values in against.values.items()}
    drawn = _orders(len(gallery), orders)
    for order in drawn:
        # Scores are M times the products, which differ by 2 M, minus the place in the order: exact in float64.
        place = order.double()[:, None].to(gallery.device)
        ordered = torch.cat([_pm1(gallery), -place], dim=1)
        weighted = torch.cat([len(gallery) * _pm1(queries), torch.ones_like(_pm1(queries[:, :1]))], dim=1)
        for metric, values in measure(weighted, ordered, query_labels, gallery_labels, metrics).values.items():
            sums[metric] += values
    means = {metric: total / len(drawn) for metric, total in sums.items()}
    return Measured(means, against.gallery, against.first, against.counts)


def _orders(items: int, orders: int) -> list[Tensor]:
    if items <= _EXACT:
        return [torch.tensor(order) for order in permutations(range(items))]
    return [torch.randperm(items, generator=torch.Generator().manual_seed(seed)) for seed in range(orders)]


def _signs(vectors: Tensor) -> Tensor:
    return _pm1(vectors > 0)


def _pm1(codes: Tensor) -> Tensor:
    return 2 * codes.double() - 1


def _check(queries: Tensor, gallery: Tensor) -> None:
    for name, codes in (("queries", queries), ("gallery", gallery)):
        if codes.dtype != torch.bool:
            raise TypeError(f"{name} must be codes, a bool tensor, got {codes.dtype}")
    if queries.ndim != 2 or gallery.ndim != 2 or queries.shape[1] != gallery.shape[1]:
        shapes = f"{tuple(queries.shape)} and {tuple(gallery.shape)}"
        raise ValueError(f"queries must be [N, bits] and gallery [M, bits] with as many bits, got {shapes}")
