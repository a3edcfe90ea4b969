"""Region embeddings of FGAN: the saliency of patches or words, the choice of the K most salient, their embedding.

How rows are chosen is an argument (`Selector`): in training the perturbed top-K, in evaluation `hard_top_k`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Selector: TypeAlias = Callable[[Tensor, int, Tensor | None], Tensor]
"""Scores [B, N], K and a mask [B, N], True where a region may not be chosen -> weights [B, K, N], a row a region."""

AGGREGATES = ("concat", "mean")
REGIONS = ("salient", "random", "mean")
HEADS = 4


class RegionOutput(NamedTuple):
    """Embedding [B, d_x] and the saliency [B, N] in (0, 1), None where regions are not chosen by it."""

    embedding: Tensor
    saliency: Tensor | None


def hard_top_k(scores: Tensor, k: int, mask: Tensor | None = None) -> Tensor:
    """Return the one-hot rows of the k largest scores, in order of position (Eq. 6).

    Args:
        scores: [B, N]; of equal scores the first is larger.
        k: number of rows.
        mask: [B, N], True where an entry may not be chosen.

    Returns:
        [B, k, N] in the type of `scores`. Where fewer than k entries may be chosen, the last rows are zero.

    Raises:
        ValueError: k is below 1, or the shapes do not fit.

    >>> hard_top_k(torch.tensor([[0.3, 0.9, 0.5]]), 2)
    tensor([[[0., 1., 0.],
             [0., 0., 1.]]])
    """
    if scores.ndim != 2 or k < 1:
        raise ValueError(f"scores must be [B, N] and k at least 1, got {list(scores.shape)} and {k}")
    if mask is not None and mask.shape != scores.shape:
        raise ValueError(f"mask must have the shape {list(scores.shape)} of scores, got {list(mask.shape)}")
    N = scores.shape[1]
    if mask is not None:
        scores = scores.masked_fill(mask, -torch.inf)
    places = scores.argsort(dim=1, descending=True, stable=True)[:, :k]
    if mask is not None:
        places = places.masked_fill(mask.gather(1, places), N)
    rows = F.one_hot(places.sort(dim=1).values, N + 1)[..., :N].to(scores.dtype)
    return F.pad(rows, (0, 0, 0, k - rows.shape[1]))


def mean_of_regions(regions: Tensor, padding: Tensor | None = None) -> Tensor:
    """Return the mean [B, d] of regions [B, N, d] that are not padding (Eq. 10)."""
    if padding is None:
        return regions.mean(1)
    kept = ~padding[..., None]
    return torch.where(kept, regions, 0.0).sum(1) / kept.sum(1).clamp(min=1)


class Saliency(nn.Module):
    """Saliency [B, N] in (0, 1) of regions [B, N, d]: attention among them, a linear layer, a sigmoid (Eq. 3-5)."""

    def __init__(self, width: int, *, dropout: float = 0.1) -> None:
        super().__init__()
        if width % HEADS:
            raise ValueError(f"width must be a multiple of {HEADS} heads, got {width}")
        self.attention = nn.MultiheadAttention(width, HEADS, dropout=dropout, batch_first=True)
        self.score = nn.Linear(width, 1)

    def forward(self, regions: Tensor, padding: Tensor | None = None) -> Tensor:
        mixed, _ = self.attention(regions, regions, regions, key_padding_mask=padding, need_weights=False)
        return torch.sigmoid(self.score(mixed)).squeeze(-1)


class RegionHead(nn.Module):
    """Embedding of an item from its regions (Eq. 3-9).

    Args:
        width: d of the regions.
        embedding: d_x.
        kept: number K of regions, or their share of each item's own regions, at least one; a share needs "mean".
        aggregate: "concat" joins the K regions, so that each has weights of its own; "mean" averages them. An item with
            fewer regions than K has zeros in place of the missing ones with "concat", and the mean of all with "mean".
        normalise: a LayerNorm after the linear layer.
        regions: "salient": the K most salient ones; "random": K others in every training step, and in evaluation the
            same positions for every item, so that two evaluations agree; "mean": the mean of all (Table 4).

    Raises:
        ValueError: an option is unknown, or `kept` does not fit `aggregate`.

    Source: Ge et al. 2025, section 4.2.2.
    """

    def __init__(
        self,
        width: int,
        embedding: int,
        *,
        kept: int | float = 4,
        aggregate: str = "concat",
        normalise: bool = True,
        regions: str = "salient",
    ) -> None:
        super().__init__()
        check_regions("kept", kept, aggregate, regions)
        self.kept, self.aggregate, self.regions = kept, aggregate, regions
        self.saliency = Saliency(width) if regions == "salient" else None
        rows = int(kept) if aggregate == "concat" and regions != "mean" else 1
        self.project = nn.Linear(rows * width, embedding)
        self.norm = nn.LayerNorm(embedding) if normalise else nn.Identity()

    def forward(
        self,
        regions: Tensor,
        padding: Tensor | None = None,
        *,
        select: Selector = hard_top_k,
        generator: torch.Generator | None = None,
    ) -> RegionOutput:
        """Embed regions [B, N, d], padding [B, N] True where there is none; `generator` is that of random regions."""
        if self.regions == "mean":
            return RegionOutput(self.norm(self.project(mean_of_regions(regions, padding))), None)
        if self.saliency is None:
            saliency, scores, select = None, self._random_scores(regions, generator), hard_top_k
        else:
            saliency = self.saliency(regions, padding)
            scores = saliency.float() if saliency.dtype in (torch.float16, torch.bfloat16) else saliency
        chosen = self._chosen(regions, scores, padding, select)
        return RegionOutput(self.norm(self.project(chosen)), saliency)

    def _chosen(self, regions: Tensor, scores: Tensor, padding: Tensor | None, select: Selector) -> Tensor:
        if self.aggregate == "concat":
            weights = select(scores, int(self.kept), padding)
            return (weights.to(regions.dtype) @ _without(regions, padding)).flatten(1)
        counts = self._counts(regions, padding)
        found = regions.new_zeros(regions.shape[0], regions.shape[2])
        for count in sorted(set(counts)):
            rows = torch.tensor([i for i, c in enumerate(counts) if c == count], device=regions.device)
            hidden = None if padding is None else padding[rows]
            weights = select(scores[rows], count, hidden).sum(1, keepdim=True) / count
            mean = (weights.to(regions.dtype) @ _without(regions[rows], hidden)).squeeze(1)
            found = found.index_copy(0, rows, mean.to(found.dtype))
        return found

    def _counts(self, regions: Tensor, padding: Tensor | None) -> list[int]:
        """Return how many regions of each item are kept; reading the lengths waits for the device."""
        B, N = regions.shape[:2]
        lengths = [N] * B if padding is None else (~padding).sum(1).tolist()
        if isinstance(self.kept, float):
            return [max(1, int(self.kept * length)) for length in lengths]
        return [max(1, min(self.kept, length)) for length in lengths]

    def _random_scores(self, regions: Tensor, generator: torch.Generator | None) -> Tensor:
        B, N = regions.shape[:2]
        if self.training:
            return torch.rand(B, N, generator=generator, device=regions.device)
        places = torch.arange(1, N + 1, device=regions.device)
        return (places * 2654435761 % 2**32).double().expand(B, N)  # positions in no order, the same for any N


def check_regions(name: str, kept: int | float, aggregate: str, regions: str) -> None:
    """Raise a ValueError or TypeError unless `kept`, which messages call `name`, fits the other two options."""
    if aggregate not in AGGREGATES:
        raise ValueError(f"aggregate must be one of {AGGREGATES}, got {aggregate!r}")
    if regions not in REGIONS:
        raise ValueError(f"regions must be one of {REGIONS}, got {regions!r}")
    if isinstance(kept, bool) or not isinstance(kept, int | float):
        raise TypeError(f"{name} must be a number of regions or a share of them, got {kept!r}")
    if isinstance(kept, int) and kept < 1:
        raise ValueError(f"{name} must be at least 1 region, got {kept}")
    if isinstance(kept, float) and not 0 < kept < 1:
        raise ValueError(f"{name} must be a share between 0 and 1 or a whole number of regions, got {kept}")
    if isinstance(kept, float) and aggregate == "concat" and regions != "mean":
        raise ValueError(f'{name} must be a whole number with aggregate="concat", which joins as many, got {kept}')


def _without(regions: Tensor, padding: Tensor | None) -> Tensor:
    """Return the regions with zeros for padding, as 0 times a NaN there would be a NaN."""
    return regions if padding is None else regions.masked_fill(padding[..., None], 0.0)
