"""Combine the hits of a picture with those of words: the score of an item is the larger of both."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from hystar_fast.index.engine import Engine
from hystar_fast.index.where import Where
from hystar_fast.retrieval.joint import SOFTMAX_SCALE


@dataclass(frozen=True)
class Found:
    """The hits of one part of a query.

    Attributes:
        scores: cosine similarities, best first.
        keys: of the items.
        offset: is subtracted from the scores: 0 for "similarity"; log(sum_j exp(scale * score_j)) / scale, over all
            items, for "softmax".
    """

    scores: list[float]
    keys: list[str]
    offset: float = 0.0


def softmax_offsets(
    engine: Engine, view: str, queries: Tensor, where: Where | None, generation: int | None
) -> list[float]:
    """Return the `offset` of each query for "softmax"; arguments and errors as `Engine.log_sum`."""
    sums = engine.log_sum(view, queries, SOFTMAX_SCALE, where, generation)
    return [float(value) for value in (sums.flatten() / SOFTMAX_SCALE).tolist()]


def combined(found: Mapping[str, Found], k: int) -> list[tuple[str, float, str]]:
    """Return the first k by the larger score of each item, as (key, score, part).

    An item among the first k of the maximum is among the first k of the part that gives it, so k of each suffice.

    Args:
        found: part -> its hits.
        k: number of hits.
    """
    best: dict[str, tuple[float, str]] = {}
    for part, hits in found.items():
        for score, key in zip(hits.scores, hits.keys, strict=True):
            value = score - hits.offset
            if key not in best or value > best[key][0]:
                best[key] = value, part
    ranked = sorted(best.items(), key=lambda entry: (-entry[1][0], entry[0]))[:k]
    return [(key, value, part) for key, (value, part) in ranked]
