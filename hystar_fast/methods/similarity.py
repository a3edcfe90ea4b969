"""The similarity by which the vectors of a method are compared: cosine, unless the method says otherwise."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

COSINE_NAME = "cosine"


class Similarity(ABC):
    """A score of a query and a gallery item by their vectors; the larger, the more similar.

    Scores are finite for finite vectors, and differ by more than 1e-6 where the order matters: less is a tie.
    """

    @property
    @abstractmethod
    def name(self) -> str:
        """The name that is kept in an index, which refuses every other similarity."""

    @property
    def is_cosine(self) -> bool:
        return self.name == COSINE_NAME

    def prepare(self, vectors: Tensor) -> Tensor:
        """Return what `scores` takes of vectors [n, D]: parts that each pair would compute again are added once."""
        return vectors

    @abstractmethod
    def scores(self, queries: Tensor, gallery: Tensor) -> Tensor:
        """Return the scores [N, M] of prepared queries [N, ·] and gallery items [M, ·]."""

    def paired(self, queries: Tensor, gallery: Tensor) -> Tensor:
        """Return the scores [N] of prepared queries [N, ·], each with the gallery item in its row."""
        rows = zip(queries.split(1), gallery.split(1), strict=True)
        return torch.cat([self.scores(query, item).diagonal() for query, item in rows])


class Cosine(Similarity):
    """<q, g> of unit vectors."""

    name = COSINE_NAME

    def scores(self, queries: Tensor, gallery: Tensor) -> Tensor:
        return queries @ gallery.mT

    def paired(self, queries: Tensor, gallery: Tensor) -> Tensor:
        return (queries * gallery).sum(-1)


COSINE: Similarity = Cosine()
