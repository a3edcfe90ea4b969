"""Every public definition of the retrieval metrics, each under its own name.

The literature writes "mAP@200" and "Prec@100" for several different numbers, so a name without its definition is
refused here. P is the number of relevant items of a query, M the size of the gallery, and tp_k the relevant items
among the first k; `rank_i` is the rank of the i-th relevant item (:mod:`hystar_fast.retrieval.relevant_ranks`).

| name | definition | where it is found |
|---|---|---|
| ``R@k`` | 1 if tp_k > 0 (Top-k accuracy) | Hystar, FreestyleRet, fine-grained SBIR |
| ``mAP@all`` | (1/P) Σ_i i / rank_i | FGAN; torchmetrics, scikit-learn |
| ``mAP@k:positives`` | (1/P) Σ_{rank_i <= k} i / rank_i | TREC's map_cut |
| ``mAP@k:capped`` | the same over min(k, P) | Kaggle and recommender evaluations |
| ``mAP@k:found`` | the same over tp_k; 0 if tp_k = 0 | torchmetrics, cross-modal hashing |
| ``…:interpolated`` | i / rank_i replaced by max_{j >= i} j / rank_j, counted j only | ``capped``: ACNet, MA-SBIR |
| ``Prec@k:k`` | tp_k / k | torchmetrics, textbooks |
| ``Prec@k:gallery`` | tp_k / min(k, M) | ACNet; torchmetrics with adaptive_k |
| ``Prec@k:positives`` | tp_k / min(k, P) | some zero-shot SBIR code |
| ``Prec@k:shortened`` | tp_s / s with s = min(k, P): fewer ranks are looked at | MA-SBIR, ZSE-SBIR, UCDIR |

A query without any relevant item has no value (nan): it is excluded from the mean and counted.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hystar_fast.methods.similarity import COSINE, Similarity
from hystar_fast.retrieval.metrics import Interval, bootstrap_mean
from hystar_fast.retrieval.relevant_ranks import relevant_ranks

DENOMINATORS = {"mAP": ("positives", "capped", "found"), "Prec": ("k", "gallery", "positives", "shortened")}
_NAME = re.compile(r"(R|mAP|Prec)@(all|\d+)(?::([a-z]+))?(:interpolated)?")


@dataclass(frozen=True)
class Metric:
    """One definition: see the table of this module.

    Attributes:
        kind: "R", "mAP" or "Prec".
        k: the cut-off; None means the whole gallery.
        denominator: the divisor of the sum; "" where there is no choice.
        interpolated: precision is replaced by the best precision at the same or a higher recall.
    """

    kind: str
    k: int | None
    denominator: str = ""
    interpolated: bool = False

    @classmethod
    def parse(cls, name: str) -> Metric:
        """Return the metric of a name such as "R@5", "mAP@all:interpolated" or "Prec@100:gallery".

        Raises:
            ValueError: no metric has that name; if only the definition is missing, the message lists the choices.

        Example:
            >>> Metric.parse("mAP@200:capped")
            Metric(kind='mAP', k=200, denominator='capped', interpolated=False)
        """
        found = _NAME.fullmatch(name)
        if name == "mAP@all:interpolated":
            return cls("mAP", None, interpolated=True)
        if not found:
            raise ValueError(f"metric must be R@k, mAP@all, mAP@k:<denominator> or Prec@k:<denominator>, got {name!r}")
        kind, cut, denominator, interpolated = found[1], found[2], found[3] or "", bool(found[4])
        k = None if cut == "all" else int(cut)
        if k == 0 or (k is None and kind != "mAP"):
            raise ValueError(f"metric {kind}@k must have a cut-off of at least 1, got {name!r}")
        allowed = () if k is None else DENOMINATORS.get(kind, ())
        if denominator not in (allowed or ("",)):
            choices = ", ".join(f"{kind}@{cut}:{entry}" for entry in allowed) or f"{kind}@{cut}"
            raise ValueError(f"metric must name its definition: {choices}, got {name!r}")
        if interpolated and kind != "mAP":
            raise ValueError(f"metric must be a mAP to be interpolated, got {name!r}")
        return cls(kind, k, denominator, interpolated)

    def __str__(self) -> str:
        cut = "all" if self.k is None else str(self.k)
        return (
            f"{self.kind}@{cut}"
            + f":{self.denominator}" * bool(self.denominator)
            + ":interpolated" * (self.interpolated)
        )

    def values(self, ranks: Tensor, counts: Tensor, gallery: int) -> Tensor:
        """Return the metric of each query, float64 [n], nan without relevant items.

        Args:
            ranks: int64 [n, P], counts: int64 [n]; as :func:`relevant_ranks` yields them.
            gallery: M, the size of the gallery.
        """
        k = gallery if self.k is None else self.k
        last = counts.clamp(1, k)[:, None] if self.denominator == "shortened" else k
        counted = (ranks > 0) & (ranks <= last)
        found = counted.sum(1).double()
        if self.kind == "R":
            value = (found > 0).double()
        elif self.kind == "Prec":
            fixed = torch.full_like(counts, k if self.denominator == "k" else min(k, gallery))
            value = found / (counts.clamp(1, k) if self.denominator in ("positives", "shortened") else fixed)
        else:
            value = self._precisions(ranks, counted).sum(1) / self._divisor(counts, found, k)
        return torch.where(counts > 0, value, torch.nan)

    def _precisions(self, ranks: Tensor, counted: Tensor) -> Tensor:
        position = torch.arange(1, ranks.shape[1] + 1, device=ranks.device, dtype=torch.float64)
        precision = torch.where(counted, position / ranks.clamp(min=1), 0.0)
        if not self.interpolated or not precision.shape[1]:
            return precision
        return torch.where(counted, precision.flip(1).cummax(1).values.flip(1), 0.0)

    def _divisor(self, counts: Tensor, found: Tensor, k: int) -> Tensor:
        if self.denominator == "found":
            return found.clamp(min=1)
        return counts.clamp(1, k) if self.denominator == "capped" else counts.clamp(min=1)


@dataclass(frozen=True)
class Measured:
    """The metrics of a set of queries.

    Attributes:
        values: metric -> float64 [N], nan for queries without a relevant item.
        gallery: the size of the gallery.
        first: int64 [N], the rank of the best relevant item counted from 1; 0 for queries without one.
        counts: int64 [N], the number of relevant items of each query.
    """

    values: dict[Metric, Tensor]
    gallery: int
    first: Tensor
    counts: Tensor

    @property
    def unanswerable(self) -> int:
        """The number of queries without a relevant item in the gallery, which are excluded from every mean."""
        return int(next(iter(self.values.values())).isnan().sum())

    def interval(self, metric: Metric, *, seed: int = 0) -> Interval | None:
        """Return the mean over the queries with its 95 % bootstrap interval; None if no query has a value."""
        values = self.values[metric]
        answered = values[~values.isnan()]
        return bootstrap_mean(answered, seed=seed) if len(answered) else None

    @property
    def chance(self) -> float | None:
        """The mean over the queries of `chance_level`: mAP@all of random rankings; None if no query has a value."""
        answered = self.counts[self.counts > 0]
        return chance_level(answered, self.gallery).mean().item() if len(answered) else None


def chance_level(relevant: Tensor, gallery: int) -> Tensor:
    """Return the expected AP (``mAP@all``, not interpolated) of a random ranking.

    E[AP] = H_M / M + (P - 1) / (M - 1) · (1 - H_M / M) with H_M = Σ_{k <= M} 1 / k: the precision at the rank k of a
    relevant item is (1 + (k - 1)(P - 1) / (M - 1)) / k on average, and every rank is as likely.

    Args:
        relevant: int64 [n], P of each query, between 1 and M.
        gallery: M, the size of the gallery.

    Returns:
        float64 [n].

    Raises:
        ValueError: a number of relevant items is not between 1 and M.

    Example:
        >>> [round(value, 3) for value in chance_level(torch.tensor([1, 40, 400]), 400).tolist()]
        [0.016, 0.113, 1.0]
    """
    if len(relevant) and not 1 <= int(relevant.min()) <= int(relevant.max()) <= gallery:
        found = f"{int(relevant.min())} to {int(relevant.max())}"
        raise ValueError(f"relevant must be between 1 and {gallery}, the size of the gallery, got {found}")
    first = (1 / torch.arange(1, gallery + 1, dtype=torch.float64)).sum() / max(1, gallery)
    return first + (relevant.double() - 1) / max(1, gallery - 1) * (1 - first)


def measure(
    queries: Tensor,
    gallery: Tensor,
    query_labels: Tensor,
    gallery_labels: Tensor,
    metrics: Sequence[Metric],
    *,
    block: int = 4096,
    query_block: int = 256,
    similarity: Similarity = COSINE,
) -> Measured:
    """Compute every metric of every query over the whole gallery; see :func:`relevant_ranks` for the arguments.

    Raises:
        TypeError, ValueError: as :func:`relevant_ranks`; ValueError too without a metric.

    Example:
        >>> found = measure(torch.eye(3), torch.eye(3), torch.arange(3), torch.arange(3), [Metric.parse("mAP@all")])
        >>> found.interval(Metric.parse("mAP@all")).value
        1.0
    """
    if not metrics:
        raise ValueError("metrics must name at least one metric, got none")
    blocks = relevant_ranks(
        queries,
        gallery,
        query_labels,
        gallery_labels,
        block=block,
        query_block=query_block,
        similarity=similarity,
    )
    parts: dict[Metric, list[Tensor]] = {metric: [torch.empty(0, dtype=torch.float64)] for metric in metrics}
    first = [torch.empty(0, dtype=torch.int64)]
    relevant = [torch.empty(0, dtype=torch.int64)]
    for ranks, counts in blocks:
        relevant.append(counts.cpu())
        first.append(ranks[:, 0].cpu() if ranks.shape[1] else torch.zeros(len(ranks), dtype=torch.int64))
        for metric, found in parts.items():
            found.append(metric.values(ranks, counts, len(gallery)).cpu())
    values = {metric: torch.cat(found) for metric, found in parts.items()}
    return Measured(values, len(gallery), torch.cat(first), torch.cat(relevant))
