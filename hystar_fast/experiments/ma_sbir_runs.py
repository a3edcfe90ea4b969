"""Figures of MA-SBIR, and of methods beside it, on the embedded drawings: outlines and sketches find pictures.

A figure is a tensor [n] over the queries of both styles, style after style.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import torch
from torch import Tensor

from hystar_fast.data.image_set import ImageSet
from hystar_fast.data.open import open_images
from hystar_fast.experiments.embedded_runs import unseen_parts
from hystar_fast.methods.conversion import CONVERTED, MEAN_SHIFT
from hystar_fast.methods.interface import GALLERY, QUERY, Method
from hystar_fast.retrieval.definitions import Metric
from hystar_fast.retrieval.embed import embed_records
from hystar_fast.retrieval.evaluate import ORIGINAL, measure_by
from hystar_fast.retrieval.modality_means import modality_means

SOURCE, STYLES = "emoji", ("outline", "sketch")
_METRICS = {"category": ("mAP@all", "Prec@5:shortened"), "instance": ("R@1",)}  # of the subgroup, of the own concept


@lru_cache(maxsize=1)
def training_drawings() -> ImageSet:
    """Return the training concepts in the gallery's style and `STYLES`, of which no subgroup is unseen."""
    images = open_images(SOURCE, "train")
    kept = (images.gallery_style, *STYLES)
    return replace(images, records=tuple(record for record in images.records if record.style in kept))


def ma_sbir_parts() -> dict[str, ImageSet]:
    """Return `unseen_parts`, and "test", the whole test split."""
    return unseen_parts(SOURCE) | {"test": open_images(SOURCE, "test")}


def ma_sbir_figures(method: Method, images: ImageSet) -> dict[str, dict[str, Tensor]]:
    """Return way -> figure -> [n] between 0 and 1; the ways are "original" and those in which queries can be moved.

    A method without means of its styles gets those of the training drawings.
    """
    if not method.style_means:
        method.style_means = modality_means(method, training_drawings())
    gallery = embed_records(method, images, images.gallery, [], role=GALLERY)
    found: dict[str, dict[str, list[Tensor]]] = {}
    for style in STYLES:
        queries = embed_records(method, images, images.of_style(style), [], role=QUERY)
        moved = {ORIGINAL: queries.vectors}
        for name, way in method.conversions().items():
            moved[name] = way(queries.vectors, style, images.gallery_style)
        for by, names in _METRICS.items():
            metrics = [Metric.parse(name) for name in names]
            for name, vectors in moved.items():
                measured = measure_by(by, replace(queries, vectors=vectors), gallery, metrics, method.similarity)
                for metric in metrics:
                    found.setdefault(name, {}).setdefault(str(metric), []).append(measured.values[metric])
    return {way: {name: torch.cat(values) for name, values in figures.items()} for way, figures in found.items()}


def reported_figures(method: Method, images: ImageSet) -> dict[str, Tensor]:
    """Return the figures of the row that the paper reports, and those of original and mean-shifted queries.

    That row is of converted queries, and of original ones where no vector of a modality is trained.
    """
    found = ma_sbir_figures(method, images)
    reported = found.get(CONVERTED, found[ORIGINAL])
    others = {f"{name}, {way}": values for way in (ORIGINAL, MEAN_SHIFT) for name, values in found[way].items()}
    return {**reported, **others}
