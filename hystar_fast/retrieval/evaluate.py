"""Evaluation over the full gallery: ranks by query style, recalls with intervals, and differences between methods."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hystar_fast.methods.interface import Method
from hystar_fast.retrieval.embed import embed_images, embed_texts
from hystar_fast.retrieval.metrics import Interval, bootstrap_mean, target_ranks
from hystar_fast.retrieval.protocol import GALLERY_STYLE, HARD_STYLES, QUERY_STYLES, StyledConcepts


@dataclass(frozen=True)
class Evaluation:
    """What one method did on one gallery.

    Attributes:
        gallery: [n, D] embeddings of the gallery, row i being concept i.
        rows: style -> the concepts (= gallery rows) that were asked for.
        queries: style -> [len(rows), D] embeddings.
        ranks: style -> the rank of the right item for every query, 0 being the first.
        unseen: bool [n], concepts of unseen subgroups.
    """

    gallery: Tensor
    rows: dict[str, Tensor]
    queries: dict[str, Tensor]
    ranks: dict[str, Tensor]
    unseen: Tensor

    def recall(self, style: str, k: int, *, unseen_only: bool = False) -> Interval | None:
        """R@k of one style with its interval; None if the method did not answer that style."""
        return self.mean_recall([style], k, unseen_only=unseen_only)

    def mean_recall(self, styles: Sequence[str], k: int, *, unseen_only: bool = False) -> Interval | None:
        """The mean of R@k over `styles`, concepts being resampled for the interval; None if one is not answered."""
        hits = self.hits(styles, k, unseen_only=unseen_only)
        return None if hits is None else bootstrap_mean(hits)

    def hits(self, styles: Sequence[str], k: int, *, unseen_only: bool = False) -> Tensor | None:
        """[styles, concepts]: 1 where the right item was among the first k, 0 where not, nan where not asked."""
        if any(style not in self.ranks for style in styles):
            return None
        table = torch.full((len(styles), len(self.gallery)), torch.nan)
        for i, style in enumerate(styles):
            table[i, self.rows[style]] = (self.ranks[style] < k).float()
        return table[:, self.unseen] if unseen_only else table


def evaluate(
    method: Method,
    concepts: StyledConcepts,
    *,
    styles: Sequence[str] = QUERY_STYLES,
    gallery: Tensor | None = None,
    batch_size: int = 128,
    progress: Callable[[int], object] | None = None,
) -> Evaluation:
    """Rank the whole gallery for every query of every style.

    Args:
        method: the system; styles it cannot take (text for the floors) are left out.
        concepts: the held-out concepts with their drawings.
        styles: the query styles.
        gallery: embeddings of the gallery that another evaluation of the same method and concepts has made.
        batch_size: images a forward pass.
        progress: called with the number of images done after every batch.
    """
    if gallery is None:
        gallery = embed_images(method, concepts.images[GALLERY_STYLE], batch_size=batch_size, progress=progress)
    rows: dict[str, Tensor] = {}
    queries: dict[str, Tensor] = {}
    for style in styles:
        asked = concepts.rows(style)
        if style == "text":
            embedded = embed_texts(method, concepts.texts)
            if embedded is None:
                continue
        else:
            embedded = embed_images(method, concepts.images[style][asked], batch_size=batch_size, progress=progress)
        rows[style], queries[style] = asked, embedded
    ranks = {style: target_ranks(queries[style], gallery, rows[style]) for style in rows}
    return Evaluation(gallery, rows, queries, ranks, concepts.unseen)


def difference(ours: Evaluation, other: Evaluation, styles: Sequence[str] = HARD_STYLES, k: int = 1) -> Interval | None:
    """The paired difference of the mean R@k of two methods on the same queries, with its 95 % interval.

    Raises:
        ValueError: the two were not evaluated on the same queries.
    """
    a, b = ours.hits(styles, k), other.hits(styles, k)
    if a is None or b is None:
        return None
    if a.shape != b.shape or not torch.equal(a.isnan(), b.isnan()):
        raise ValueError("ours and other must be evaluated on the same queries, got different ones")
    return bootstrap_mean(a - b)


def images_to_embed(concepts: StyledConcepts, styles: Sequence[str] = QUERY_STYLES) -> int:
    """How many images `evaluate` encodes, for a progress bar."""
    return len(concepts) + sum(len(concepts.rows(style)) for style in styles if style != "text")
