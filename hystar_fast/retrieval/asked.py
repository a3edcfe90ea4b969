"""Which queries an evaluation of a data set has asked, numbered so that one thing asked in two styles is paired."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hystar_fast.data.records import ImageSet, Record
from hystar_fast.retrieval.evaluate_images import Row


@dataclass(frozen=True)
class Asked:
    """The queries of each kind by number.

    Queries for one picture of the gallery have one number in every style, so that an interval resamples them together
    and two methods are compared query by query. Where several of one style ask for a picture, the first of every
    style share a number, and so on; a query without such a picture has a number of its own.

    Attributes:
        count: how many numbers there are.
        numbers: kind of query -> int64, in the order of its ranks.
    """

    count: int
    numbers: Mapping[str, Tensor]

    @classmethod
    def of(cls, images: ImageSet, rows: Sequence[Row]) -> Asked:
        """Those of an evaluation of a data set."""
        number, count = _numbered(images)
        return cls(
            count, {row.queries: torch.tensor([number[r] for r in row.asked], dtype=torch.int64) for row in rows}
        )

    @classmethod
    def from_dict(cls, found: Mapping[str, Any]) -> Asked:
        """What `to_dict` has made."""
        return cls(found["count"], {kind: torch.tensor(numbers) for kind, numbers in found["numbers"].items()})

    def to_dict(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return {"count": self.count, "numbers": {kind: numbers.tolist() for kind, numbers in self.numbers.items()}}

    def __len__(self) -> int:
        return self.count

    @property
    def unseen(self) -> Tensor:
        return torch.zeros(self.count, dtype=torch.bool)

    def rows(self, style: str) -> Tensor:
        if style not in self.numbers:
            raise ValueError(f"style must be one of {(*self.numbers,)}, got {style!r}")
        return self.numbers[style]

    def joined(self, other: Asked) -> Asked:
        """Both, where another method has answered other kinds of queries.

        Raises:
            ValueError: they differ on a kind that both have: the pictures are not the same.
        """
        for kind in self.numbers.keys() & other.numbers.keys():
            if self.count != other.count or not torch.equal(self.numbers[kind], other.numbers[kind]):
                raise ValueError(f"the queries {kind!r} are not those of earlier runs: the data set has changed")
        return Asked(self.count, {**other.numbers, **self.numbers})


def recorded(images: ImageSet, rows: Sequence[Row]) -> tuple[dict[str, list[int]], Asked]:
    """The ranks of every kind of query in an evaluation, and which queries they are: what `restored` takes."""
    return {row.queries: row.ranks.tolist() for row in rows}, Asked.of(images, rows)


def _numbered(images: ImageSet) -> tuple[dict[Record, int], int]:
    numbers: dict[tuple[str, int], int] = {}
    seen: dict[tuple[str, str], int] = defaultdict(int)
    found = {}
    for record in images.records:
        thing = f"path {record.path}" if record.instance is None else f"instance {record.instance}"
        found[record] = numbers.setdefault((thing, seen[record.style, thing]), len(numbers))
        seen[record.style, thing] += 1
    return found, len(numbers)
