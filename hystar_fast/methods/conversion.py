"""Conversion of a vector from one modality to another, such as from sketch to photo, by a vector for each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

CONVERTED, MEAN_SHIFT = "converted", "mean shift"


@dataclass(frozen=True)
class Conversion:
    """x -> N(x - m_source + m_target).

    The norm of a query does not change its ranking, so it ranks by x · g + (m_target - m_source) · g: a number for each
    gallery item is added, the same for every query.

    Attributes:
        vectors: modality -> m [D], that of the gallery first.
        normalises: x -> N(N(x - m_source) + m_target), as Eq. 6 of MA-SBIR's paper is printed.
    """

    vectors: Mapping[str, Tensor]
    normalises: bool = False

    def __call__(self, vectors: Tensor, source: str, target: str) -> Tensor:
        """Return unit vectors [n, D]; those of equal modalities are returned as they are.

        Args:
            vectors: unit vectors [n, D].
            source, target: names of `vectors` of this conversion.

        Raises:
            ValueError: there is no such modality.

        >>> shift = Conversion({"photo": torch.tensor([0.0, 1.0]), "sketch": torch.tensor([1.0, 0.0])})
        >>> shift(torch.tensor([[1.0, 0.0]]), "sketch", "photo")
        tensor([[0., 1.]])
        """
        for name in (source, target):
            if name not in self.vectors:
                raise ValueError(f"modality must be one of {', '.join(self.vectors)}, got {name!r}")
        start, end = (self.vectors[name].to(vectors) for name in (source, target))
        if torch.equal(start, end) and not self.normalises:
            return vectors
        semantics = vectors - start
        if self.normalises:
            semantics = F.normalize(semantics, dim=-1)
        return F.normalize(semantics + end, dim=-1)
