"""Figures of FGAN, and of methods beside it, on the embedded drawings with names and keywords: of every query.

A figure is a tensor [2, n]: of each of n concepts, one row for its picture that asks for texts and one for its text
that asks for pictures.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from hystar_fast.data.image_set import ImageSet, Record
from hystar_fast.methods.fgan.label_similarity import RETRIEVALS, LabelSimilarity
from hystar_fast.methods.interface import Method
from hystar_fast.methods.similarity import Similarity
from hystar_fast.retrieval.definitions import Metric, measure
from hystar_fast.retrieval.embed import embed_records, embed_texts
from hystar_fast.retrieval.zero_shot import number_labels

SOURCE = "emoji:keywords"
COSINE = "cosine"
MAP, RECALL = Metric.parse("mAP@all"), Metric.parse("R@1")
FIGURES = {"mAP@all": (MAP, "category"), "R@1": (RECALL, "instance")}  # of the subgroup, and of the own concept


def embed_pairs(method: Method, images: ImageSet) -> tuple[Sequence[Record], Tensor, Tensor]:
    """Return the gallery's records that can be read, and the embeddings of their pictures and texts, [n, D] each.

    Raises:
        ValueError: the method takes no text.
    """
    found = embed_records(method, images, images.gallery, [])
    texts = embed_texts(method, [str(record.caption) for record in found.records])
    if texts is None:
        raise ValueError(f"method must take text, got {method.name!r}")
    return found.records, found.vectors, texts.float()


def figures(method: Method, images: ImageSet) -> dict[str, dict[str, Tensor]]:
    """Return retrieval -> "mAP@all" of the subgroup and "R@1" of the own concept -> [2, n].

    The retrieval is "cosine", or of FGAN each of "joint", "regions" and "labels".
    """
    records, pictures, texts = embed_pairs(method, images)
    labels = {by: number_labels([getattr(r, by) for r in records]) for by in ("category", "instance")}
    ways: dict[str, Similarity] = {COSINE: method.similarity}
    if isinstance(method.similarity, LabelSimilarity):
        ways = {name: replace(method.similarity, retrieval=name) for name in RETRIEVALS}
    sides = ((pictures, texts), (texts, pictures))

    def values(metric: Metric, by: str, similarity: Similarity) -> Tensor:
        found = [measure(*side, labels[by], labels[by], [metric], similarity=similarity) for side in sides]
        return torch.stack([one.values[metric] for one in found])

    return {
        way: {name: values(metric, by, similarity) for name, (metric, by) in FIGURES.items()}
        for way, similarity in ways.items()
    }
