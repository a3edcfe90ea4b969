"""Retrieval of one picture among those of its category, as fine-grained retrieval by sketches is measured."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from hystar_fast.methods.similarity import Similarity
from hystar_fast.retrieval.definitions import Measured, Metric, measure
from hystar_fast.retrieval.embed import Embedded
from hystar_fast.retrieval.zero_shot import number_labels

WITHIN = "instance-in-category"
PROTOCOL = "full: ranked over the gallery pictures of the query's category"


def measure_within(queries: Embedded, gallery: Embedded, metrics: Sequence[Metric], similarity: Similarity) -> Measured:
    """Compute every metric of every query over the gallery pictures of its category; its instance is relevant.

    Args:
        queries, gallery: with records that have categories and instances.
        metrics: definitions; R@1 is Acc@1.
        similarity: gives the scores.

    Returns:
        What was measured, in the order of the queries; its gallery is as large as that of the largest category.
    """
    count = len(queries.records)
    values = {metric: torch.full((count,), torch.nan, dtype=torch.float64) for metric in metrics}
    first, counts = torch.zeros(count, dtype=torch.int64), torch.zeros(count, dtype=torch.int64)
    rows: dict[str, tuple[list[int], list[int]]] = {}
    for side, part in enumerate((queries, gallery)):
        for row, record in enumerate(part.records):
            if record.category is not None:
                rows.setdefault(record.category, ([], []))[side].append(row)
    for asked, kept in rows.values():
        if not asked or not kept:
            continue
        names = [queries.records[row].instance for row in asked] + [gallery.records[row].instance for row in kept]
        labels = number_labels(names)
        sides = queries.vectors[asked], gallery.vectors[kept], labels[: len(asked)], labels[len(asked) :]
        found = measure(*sides, metrics, similarity=similarity)
        for metric in metrics:
            values[metric][asked] = found.values[metric]
        first[asked], counts[asked] = found.first, found.counts
    return Measured(values, max((len(kept) for _, kept in rows.values()), default=0), first, counts)
