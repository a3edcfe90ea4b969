"""Similarity of FGAN: the cosine of region embeddings and the divergence of label distributions, without an N x M x C.

A descriptor is one row [x, log g] of a unit region embedding and the logarithms of its label distribution. They are
logarithms because a probability below 1e-45 is 0 in float32, and its logarithm lost.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from hystar_fast.methods.similarity import Similarity

RETRIEVALS = ("joint", "regions", "labels")


def describe(embedding: Tensor, log_labels: Tensor) -> Tensor:
    """Return descriptors [B, d_x + C], in float32 or better, of region embeddings [B, d_x] and log labels [B, C]."""
    precise = torch.promote_types(torch.promote_types(embedding.dtype, log_labels.dtype), torch.float32)
    return torch.cat([F.normalize(embedding.to(precise), dim=-1), log_labels.to(precise)], dim=-1)


@dataclass(frozen=True)
class LabelSimilarity(Similarity):
    """Similarity of descriptors, larger for items that are more alike.

    With p and q the label distributions and ``J(p, q) = KL(p||q) + KL(q||p)``:
    "joint" is ``cos(x, y) + tanh(-J)`` (Eq. 29), in (-2, 1]; "regions" is the cosine (Eq. 30), in [-1, 1]; "labels" is
    ``-J``, in (-inf, 0]. It orders as Eq. 31, ``tanh(-J)``, does, which is -1 in float32 from J of about 9.2 on and
    would make ties there.

    ``J(p, q) = h(p) + h(q) - <[p, log p], [log q, q]>`` with ``h(p) = sum p log p``: one matrix product of width 2 C.
    All logarithms are taken of C p, which changes nothing but keeps the three terms, and so their rounding, small.

    Attributes:
        width: d_x, the leading columns of a descriptor.
        retrieval: "joint", "regions" or "labels".

    Raises:
        ValueError: `retrieval` is unknown, or `width` below 1.

    Source: Ge et al. 2025, section 4.6.

    >>> similarity = LabelSimilarity(width=2)
    >>> items = similarity.prepare(describe(torch.eye(2), torch.tensor([[0.5, 0.5], [0.9, 0.1]]).log()))
    >>> similarity.scores(items, items)
    tensor([[ 1.0000, -0.7059],
            [-0.7059,  1.0000]])
    """

    width: int = 512
    retrieval: str = "joint"

    def __post_init__(self) -> None:
        if self.retrieval not in RETRIEVALS:
            raise ValueError(f"retrieval must be one of {RETRIEVALS}, got {self.retrieval!r}")
        if self.width < 1:
            raise ValueError(f"width must be at least 1, got {self.width}")

    @property
    def name(self) -> str:
        """The name by which an index knows how its rows are compared."""
        return f"fgan-{self.retrieval}-{self.width}"

    def prepare(self, descriptors: Tensor) -> Tensor:
        """Compute once what every comparison takes: rows [n, d_x + C] -> [x, p, log C p, h(p)], [n, d_x + 2 C + 1].

        With "regions" it is x alone.

        Raises:
            ValueError: `descriptors` is not [n, D] with more than `width` columns.
        """
        if descriptors.ndim != 2 or descriptors.shape[1] <= self.width:
            raise ValueError(
                f"descriptors must be [n, D] with more than {self.width} columns, got {list(descriptors.shape)}"
            )
        descriptors = descriptors.to(torch.promote_types(descriptors.dtype, torch.float32))
        embedding, logs = descriptors[:, : self.width], descriptors[:, self.width :]
        if self.retrieval == "regions":
            return embedding
        labels = logs.exp()
        logs = logs + math.log(logs.shape[1])
        return torch.cat([embedding, labels, logs, (labels * logs).sum(1, keepdim=True)], dim=1)

    def scores(self, queries: Tensor, gallery: Tensor) -> Tensor:
        """Return the similarities [n, m] of prepared queries and prepared gallery items."""
        with torch.autocast(queries.device.type, enabled=False):
            if self.retrieval == "regions":
                return queries @ gallery.mT
            distance = self._distance(queries, gallery)
            if self.retrieval == "labels":
                return distance.neg_()
            cosines = queries[:, : self.width] @ gallery[:, : self.width].mT
        return cosines.sub_(distance.tanh_())

    def paired(self, queries: Tensor, gallery: Tensor) -> Tensor:
        """Return the similarities [n] of prepared queries, each with the prepared gallery item in its row."""
        cosines = (queries[:, : self.width] * gallery[:, : self.width]).sum(1)
        if self.retrieval == "regions":
            return cosines
        (p, log_p), (q, log_q) = (rows[:, self.width : -1].chunk(2, dim=1) for rows in (queries, gallery))
        distance = ((p - q) * (log_p - log_q)).sum(1)
        return -distance if self.retrieval == "labels" else cosines - distance.tanh()

    def _distance(self, queries: Tensor, gallery: Tensor) -> Tensor:
        """Return J [n, m] of prepared rows. The halves of the queries are swapped, as they are the fewer."""
        labels, logs = queries[:, self.width : -1].chunk(2, dim=1)
        cross = torch.cat([logs, labels], dim=1) @ gallery[:, self.width : -1].mT
        return (queries[:, -1:] + gallery[:, -1] - cross).clamp_(min=0)
