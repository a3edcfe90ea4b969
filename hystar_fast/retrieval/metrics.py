"""Ranks and recalls over a full gallery, streamed in blocks, with bootstrap intervals over the queries.

Ties count against the query: an item whose score is within `TIE` of the target's is ranked before the target. An
encoder that maps everything to one point therefore has a recall of zero, not of one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from hystar_fast.methods.similarity import COSINE, Similarity

TIE = 1e-6
_DRAWN_AT_ONCE = 2**21


@dataclass(frozen=True)
class Interval:
    """A mean with its 95 % percentile-bootstrap interval, and the number of units that were resampled."""

    value: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return f"{100 * self.value:.1f} [{100 * self.low:.1f}, {100 * self.high:.1f}]"


def target_ranks(
    queries: Tensor, gallery: Tensor, targets: Tensor, *, block: int = 4096, similarity: Similarity = COSINE
) -> Tensor:
    """Return the rank of each query's target among all gallery items; 0 is the first.

    rank_i = #{j != t_i : <q_i, g_j> >= <q_i, g_{t_i}> - TIE}, so ties count against the query, and so does a target
    or query whose score is not finite (it ranks last).

    Args:
        queries: [N, D] floating point, normalised for cosine similarity.
        gallery: [M, D], the same dtype.
        targets: [N] int64, the position in `gallery` of each query's only relevant item.
        block: gallery rows scored at a time; the result does not depend on it.
        similarity: takes the place of <q_i, g_j>.

    Returns:
        int64 [N], between 0 and M - 1.

    Cost:
        2NMD FLOPs and N x block scores of memory.

    Raises:
        TypeError: `targets` is not an integer tensor.
        ValueError: shapes do not match, a target lies outside the gallery, or `block` is not positive.

    Example:
        >>> target_ranks(torch.eye(3), torch.eye(3), torch.tensor([0, 1, 0])).tolist()
        [0, 0, 2]
    """
    check_targets(queries, gallery, targets, block)
    queries, gallery = (similarity.prepare(at_least_float32(entry)) for entry in (queries, gallery))
    # Target scores come from the same sums as the others up to rounding, which TIE covers.
    own = similarity.paired(queries, gallery[targets])
    return ranks_of_scores(
        lambda items: similarity.scores(queries, gallery[items]), own, targets, len(gallery), block=block
    )


def at_least_float32(embeddings: Tensor) -> Tensor:
    """Return half-precision embeddings in float32: scores that are rounded to half precision have many ties."""
    return embeddings.float() if embeddings.dtype.itemsize < torch.float32.itemsize else embeddings


def ranks_of_scores(
    scores: Callable[[slice], Tensor], own: Tensor, targets: Tensor, gallery: int, *, block: int = 4096
) -> Tensor:
    """Return the ranks of `target_ranks` for any score.

    Args:
        scores: returns the scores [N, items] of a slice of the gallery.
        own: [N], the score of each query's target.
        targets: int64 [N].
        gallery: the size of the gallery.
        block: gallery rows scored at a time.
    """
    own = own[:, None]
    threshold = torch.where(own.isfinite(), own - TIE, torch.full_like(own, -torch.inf))
    ahead = torch.zeros(len(own), dtype=torch.int64, device=own.device)
    for start in range(0, gallery, block):
        found = scores(slice(start, start + block))
        counted = (found >= threshold) | ~own.isfinite()
        local = targets - start
        inside = (local >= 0) & (local < found.shape[1])
        rows = inside.nonzero().flatten()
        counted[rows, local[rows]] = False
        ahead += counted.sum(-1)
    return ahead


def recall(ranks: Tensor, k: int) -> float:
    """Return recall at k: the share of queries whose target is among the first k (nan without queries).

    Raises:
        ValueError: k is not positive.
    """
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    return (ranks < k).double().mean().item()


def recall_at_k(queries: Tensor, gallery: Tensor, targets: Tensor, k: int = 1, *, block: int = 4096) -> float:
    """Return recall at k over the whole gallery; the arguments are those of `target_ranks`.

    Example:
        >>> recall_at_k(torch.eye(4), torch.eye(4), torch.tensor([0, 1, 2, 0]))
        0.75
    """
    return recall(target_ranks(queries, gallery, targets, block=block), k)


def bootstrap_mean(values: Tensor, *, seed: int = 0, resamples: int = 2000) -> Interval:
    """Return the mean of `values` with its 95 % interval from resampling the columns with replacement.

    Args:
        values: [n] one value a unit, or [S, n] with nan where a unit (column) has no value in a condition (row). The
            statistic of [S, n] is the mean of the row means: each condition has the same weight, and the conditions of
            one unit are resampled together, as they are not independent.
        seed: seeds the resampling; the result is reproducible.
        resamples: bootstrap samples.

    Cost:
        resamples x n draws, of which a bounded number is in memory at a time.

    Raises:
        ValueError: `values` has another number of dimensions, is empty, or a row has no value at all.
    """
    table = values.double().reshape(1, -1) if values.ndim == 1 else values.double()
    if table.ndim != 2 or table.shape[1] == 0 or bool(table.isnan().all(dim=1).any()):
        raise ValueError(f"values must be [n] or [S, n] with a value in every row, got shape {tuple(values.shape)}")
    units = table.shape[1]
    generator = torch.Generator().manual_seed(seed)
    present = table.isfinite().double()
    filled = table.nan_to_num(0.0)
    at_once = max(1, _DRAWN_AT_ONCE // units)
    parts = []
    for start in range(0, resamples, at_once):
        drawn = torch.randint(units, (min(at_once, resamples - start), units), generator=generator)
        counts = torch.zeros(drawn.shape, dtype=torch.float64)
        counts.scatter_add_(1, drawn, torch.ones_like(drawn, dtype=torch.float64))
        # A resample that holds no unit of a row has no mean for that row; the other rows carry it.
        parts.append(((counts @ filled.mT) / (counts @ present.mT)).nanmean(dim=1))
    sampled = torch.cat(parts)
    low, high = torch.quantile(sampled[sampled.isfinite()], torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return Interval(value=table.nanmean(dim=1).mean().item(), low=low, high=high, n=units)


def check_targets(queries: Tensor, gallery: Tensor, targets: Tensor, block: int = 1) -> None:
    """Raise TypeError or ValueError unless the arguments fit together as `target_ranks` needs them."""
    if queries.ndim != 2 or gallery.ndim != 2 or queries.shape[1] != gallery.shape[1]:
        shapes = f"{tuple(queries.shape)} and {tuple(gallery.shape)}"
        raise ValueError(f"queries must be [N, D] and gallery [M, D] with one D, got {shapes}")
    if targets.is_floating_point() or targets.is_complex() or targets.dtype == torch.bool:
        raise TypeError(f"targets must be an integer tensor, got {targets.dtype}")
    if targets.shape != (len(queries),):
        raise ValueError(f"targets must have shape ({len(queries)},), one a query, got {tuple(targets.shape)}")
    if len(targets) and bool(((targets < 0) | (targets >= len(gallery))).any()):
        raise ValueError(f"targets must lie in 0..{len(gallery) - 1}, got {int(targets.min())}..{int(targets.max())}")
    if block < 1:
        raise ValueError(f"block must be at least 1, got {block}")
