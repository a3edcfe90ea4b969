"""Ranks of the queries of an evaluation, with an id for each query so that styles and methods can be paired."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hystar_fast.data.image_set import ImageSet, Record
from hystar_fast.retrieval.metrics import Interval, bootstrap_mean


@dataclass(frozen=True)
class QueryIds:
    """Ids of the queries of each kind.

    Queries for one gallery picture have the same id in every style, so that a bootstrap resamples them together and two
    methods are compared query by query. If several queries of one style want the same picture (sketches of one photo,
    captions of one picture), the first of each style share an id, then the second, and so on. A query without a gallery
    picture has an id of its own.

    Attributes:
        unseen: bool [count], True where the category of the query is in no training split.
        by_kind: kind of query -> int64 ids, in the order of its ranks.
    """

    unseen: Tensor
    by_kind: Mapping[str, Tensor]

    @classmethod
    def of(cls, images: ImageSet, queries: Mapping[str, Sequence[Record]]) -> QueryIds:
        """Number the queries of an evaluation of a data set."""
        ids, unseen = _number(images)
        by_kind = {
            kind: torch.tensor([ids[r] for r in records], dtype=torch.int64) for kind, records in queries.items()
        }
        return cls(torch.tensor(unseen, dtype=torch.bool), by_kind)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> QueryIds:
        """Read what `to_dict` wrote."""
        unseen = torch.zeros(values["count"], dtype=torch.bool)
        unseen[values["unseen"]] = True
        return cls(unseen, {kind: torch.tensor(ids, dtype=torch.int64) for kind, ids in values["by_kind"].items()})

    def to_dict(self) -> dict[str, Any]:
        """Return the ids as JSON values."""
        return {
            "count": len(self),
            "unseen": self.unseen.nonzero().flatten().tolist(),
            "by_kind": {kind: ids.tolist() for kind, ids in self.by_kind.items()},
        }

    def __len__(self) -> int:
        return len(self.unseen)

    def merge(self, other: QueryIds) -> QueryIds:
        """Return the ids of both evaluations of one data set, which may have different kinds of query.

        Raises:
            ValueError: they differ on a kind that both have: the data set has changed.
        """
        for kind in self.by_kind.keys() & other.by_kind.keys():
            if len(self) != len(other) or not torch.equal(self.by_kind[kind], other.by_kind[kind]):
                raise ValueError(f"other must have the same queries {kind!r}, got others: the data set has changed")
        return QueryIds(self.unseen, {**other.by_kind, **self.by_kind})


@dataclass(frozen=True)
class Ranks:
    """Ranks of every kind of query.

    Attributes:
        ids: of the queries.
        by_kind: kind of query -> int64, the rank of the best relevant item of each query; 0 is the first.

    Raises:
        ValueError: a kind has another number of ranks than of ids.
    """

    ids: QueryIds
    by_kind: Mapping[str, Tensor]

    def __post_init__(self) -> None:
        for kind, ranks in self.by_kind.items():
            if kind not in self.ids.by_kind:
                raise ValueError(f"ranks must be of queries {(*self.ids.by_kind,)}, got {kind!r}")
            wanted = len(self.ids.by_kind[kind])
            if len(ranks) != wanted:
                raise ValueError(f"ranks of {kind!r} must be {wanted}, one a query, got {len(ranks)}")

    def hits(self, kinds: Sequence[str], k: int, *, unseen_only: bool = False) -> Tensor | None:
        """Return [kinds, ids]: 1 if a relevant item is among the first k, 0 if not, nan where there is no query.

        None if a kind has no ranks.
        """
        if any(kind not in self.by_kind for kind in kinds):
            return None
        table = torch.full((len(kinds), len(self.ids)), torch.nan)
        for i, kind in enumerate(kinds):
            table[i, self.ids.by_kind[kind]] = (self.by_kind[kind] < k).float()
        return table[:, self.ids.unseen] if unseen_only else table

    def recall(self, kinds: Sequence[str], k: int, *, unseen_only: bool = False) -> Interval | None:
        """Return the mean of R@k over kinds of query, with an interval that resamples ids.

        None if a kind has no ranks, or no query among the unseen ones.
        """
        hits = self.hits(kinds, k, unseen_only=unseen_only)
        return None if hits is None or bool(hits.isnan().all(dim=1).any()) else bootstrap_mean(hits)


def paired_difference(ours: Ranks, other: Ranks, kinds: Sequence[str], k: int = 1) -> Interval | None:
    """Return the paired difference of the mean R@k of two methods on the same queries, with its 95 % interval.

    Raises:
        ValueError: the two have different queries.
    """
    a, b = ours.hits(kinds, k), other.hits(kinds, k)
    if a is None or b is None:
        return None
    if a.shape != b.shape or not torch.equal(a.isnan(), b.isnan()):
        raise ValueError("ours and other must have the same queries, got different ones")
    return bootstrap_mean(a - b)


def _number(images: ImageSet) -> tuple[dict[Record, int], list[bool]]:
    """Return the id of each record and of each of its captions, and for each id whether its category is unseen."""
    numbers: dict[tuple[str, int, int], int] = {}
    occurrences: dict[tuple[str, str], int] = defaultdict(int)
    unseen: list[bool] = []
    found = {}
    for record in images.records:
        wanted = f"path {record.path}" if record.instance is None else f"instance {record.instance}"
        for caption, query in enumerate(record.with_each_caption() or (record,)):
            key = wanted, occurrences[record.style, wanted], caption
            if key not in numbers:
                numbers[key] = len(numbers)
                unseen.append(record.category in images.unseen_categories)
            found[query] = numbers[key]
            if caption == 0:
                found[record] = numbers[key]
        occurrences[record.style, wanted] += 1
    return found, unseen
