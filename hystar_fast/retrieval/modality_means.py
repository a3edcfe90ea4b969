"""Mean vectors of the styles of training pictures, by which queries are moved to the gallery."""

from __future__ import annotations

import torch
from torch import Tensor

from hystar_fast.data.image_set import ImageSet, Record, Skipped
from hystar_fast.methods.interface import GALLERY, QUERY, Method
from hystar_fast.retrieval.embed import embed_records


def modality_means(method: Method, images: ImageSet, skipped: list[Skipped] | None = None) -> dict[str, Tensor]:
    """Return style -> mean vector [D] of its pictures, the gallery's first.

    A class is an instance, or a category in data without instances; every class counts the same. The classes are those
    with pictures of every style, so that the means differ by the style alone; if there is none, as in unpaired data,
    each style has its own.

    Args:
        method: the encoder; queries are embedded as queries.
        images: training pictures. Means of test pictures would tell a method about its test.
        skipped: gets the pictures that cannot be read.

    Raises:
        ValueError: a style without a readable picture of a class, or a method that is not compared by cosine.
    """
    if not method.similarity.is_cosine:
        raise ValueError(f"method must be compared by cosine to have means, got {method.similarity.name!r}")
    unread: list[Skipped] = [] if skipped is None else skipped
    by_instance = images.has_instances

    def classes_of(records: tuple[Record, ...]) -> set[str | None]:
        return {record.instance if by_instance else record.category for record in records} - {None}

    embedded = {
        style: embed_records(
            method, images, images.of_style(style), unread, role=GALLERY if style == images.gallery_style else QUERY
        )
        for style in images.styles
    }
    shared = set.intersection(*(classes_of(found.records) for found in embedded.values()))
    means = {}
    for style, found in embedded.items():
        names = [record.instance if by_instance else record.category for record in found.records]
        classes = sorted(name for name in (shared or classes_of(found.records)) if name is not None)
        if not classes:
            raise ValueError(f"images must have readable pictures of a class in {style!r}, got none in {images.name}")
        number = {name: i for i, name in enumerate(classes)}
        kept = [i for i, name in enumerate(names) if name in number]
        rows = torch.tensor([number[str(names[i])] for i in kept])
        vectors = found.vectors[kept].double()
        total = vectors.new_zeros(len(classes), vectors.shape[1]).index_add_(0, rows, vectors)
        means[style] = (total / rows.bincount(minlength=len(classes))[:, None]).mean(0).float()
    return means
