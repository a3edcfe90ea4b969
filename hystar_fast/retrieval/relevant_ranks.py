"""Ranks of all relevant items, streamed over a gallery of any size.

If a query has many relevant items (a category), its metrics need the rank of each. Two passes over the gallery find
them with bounded memory: the first collects the scores of the relevant items, the second counts for each of them the
irrelevant items ranked before it. Every metric of :mod:`hystar_fast.retrieval.definitions` depends on these ranks only.

Ties count against the query, as in :func:`hystar_fast.retrieval.metrics.target_ranks`: an irrelevant item whose score
is within `TIE` of a relevant one's is ranked before it.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from hystar_fast.methods.similarity import COSINE, Similarity
from hystar_fast.retrieval.metrics import TIE, at_least_float32


def relevant_ranks(
    queries: Tensor,
    gallery: Tensor,
    query_labels: Tensor,
    gallery_labels: Tensor,
    *,
    block: int = 4096,
    query_block: int = 256,
    similarity: Similarity = COSINE,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the ranks of all relevant gallery items of each query, a block of queries at a time.

    With the relevant scores s_0 >= s_1 >= … of a query: rank_i = i + 1 + #{irrelevant j: s_j >= s_i - TIE}. A relevant
    item whose score is not finite ranks last.

    Args:
        queries: [N, D] floating point, normalised for cosine similarity.
        gallery: [M, D], the same dtype.
        query_labels: int64 [N]; an item is relevant if its label is the query's.
        gallery_labels: int64 [M].
        block: gallery rows scored at a time; the result does not depend on it.
        query_block: queries ranked at a time; the result does not depend on it.
        similarity: gives the scores.

    Yields:
        For each block of n queries: ranks int64 [n, P], ascending and counted from 1, where P is the largest number
        of relevant items in the block and 0 marks places beyond a query's own; and that number, int64 [n].

    Cost:
        4NMD FLOPs (the scores are computed twice instead of kept) and about query_block x (block + P) numbers of
        memory, never N x M.

    Raises:
        TypeError: labels are not int64.
        ValueError: shapes do not match, or a block is not positive.

    Example:
        >>> ranks, counts = next(relevant_ranks(torch.eye(2), torch.eye(2)[[0, 1, 1]], torch.tensor([0, 1]),
        ...                                     torch.tensor([0, 1, 0])))
        >>> ranks.tolist(), counts.tolist()
        ([[1, 3], [2, 0]], [2, 1])
    """
    _check(queries, gallery, query_labels, gallery_labels, block, query_block)
    queries, gallery = (similarity.prepare(at_least_float32(entry)) for entry in (queries, gallery))
    sizes, place = _places(gallery_labels)
    for start in range(0, len(queries), query_block):
        chosen = slice(start, start + query_block)
        yield _ranks(queries[chosen], gallery, query_labels[chosen], gallery_labels, sizes, place, block, similarity)


def _places(labels: Tensor) -> tuple[dict[int, int], Tensor]:
    """Count the items of each label, and return the place of each item among those of its label."""
    order = labels.argsort(stable=True)
    values, counts = labels[order].unique_consecutive(return_counts=True)
    firsts = counts.cumsum(0) - counts
    place = torch.empty_like(labels)
    place[order] = torch.arange(len(labels), device=labels.device) - firsts.repeat_interleave(counts)
    return dict(zip(values.tolist(), counts.tolist(), strict=True)), place


def _ranks(
    queries: Tensor,
    gallery: Tensor,
    query_labels: Tensor,
    gallery_labels: Tensor,
    sizes: dict[int, int],
    place: Tensor,
    block: int,
    similarity: Similarity,
) -> tuple[Tensor, Tensor]:
    counts = torch.tensor([sizes.get(label, 0) for label in query_labels.tolist()], device=queries.device)
    counts = counts.to(torch.int64)
    width = int(counts.max()) if len(counts) else 0
    # Missing and non-finite scores are -inf: ranked last, and after the finite ones when sorted.
    relevant = queries.new_full((len(queries), width), -torch.inf)
    for start in range(0, len(gallery), block):
        rows, columns = _relevant(query_labels, gallery_labels, start, block)
        scores = similarity.scores(queries, gallery[start : start + block])
        found = scores[rows, columns]
        relevant[rows, place[start + columns]] = torch.where(found.isfinite(), found, -torch.inf)
    thresholds = (relevant - TIE).sort(dim=1).values
    # ahead[:, c]: irrelevant items at or above exactly c of the ascending thresholds.
    ahead = torch.zeros(len(queries), width + 1, dtype=torch.int64, device=queries.device)
    for start in range(0, len(gallery), block):
        scores = similarity.scores(queries, gallery[start : start + block])
        scores = scores.nan_to_num(-torch.inf, torch.inf, -torch.inf)
        passed = torch.searchsorted(thresholds, scores.contiguous(), right=True)
        irrelevant = query_labels[:, None] != gallery_labels[None, start : start + block]
        ahead.scatter_add_(1, passed, irrelevant.long())
    # An item that passes c thresholds is ahead of the lowest c, so of the i-th highest if c > width - 1 - i.
    above = ahead.flip(1).cumsum(1)[:, :width]
    positions = torch.arange(1, width + 1, device=queries.device)
    return torch.where(positions <= counts[:, None], positions + above, 0), counts


def _relevant(query_labels: Tensor, gallery_labels: Tensor, start: int, block: int) -> tuple[Tensor, Tensor]:
    same = query_labels[:, None] == gallery_labels[None, start : start + block]
    rows, columns = same.nonzero(as_tuple=True)
    return rows, columns


def _check(
    queries: Tensor, gallery: Tensor, query_labels: Tensor, gallery_labels: Tensor, block: int, query_block: int
) -> None:
    if queries.ndim != 2 or gallery.ndim != 2 or queries.shape[1] != gallery.shape[1]:
        shapes = f"{tuple(queries.shape)} and {tuple(gallery.shape)}"
        raise ValueError(f"queries must be [N, D] and gallery [M, D] with one D, got {shapes}")
    for name, labels, items in (("query_labels", query_labels, queries), ("gallery_labels", gallery_labels, gallery)):
        if labels.dtype != torch.int64:
            raise TypeError(f"{name} must be an int64 tensor, got {labels.dtype}")
        if labels.shape != (len(items),):
            raise ValueError(f"{name} must have shape ({len(items)},), one an item, got {tuple(labels.shape)}")
    for name, size in (("block", block), ("query_block", query_block)):
        if size < 1:
            raise ValueError(f"{name} must be at least 1, got {size}")
