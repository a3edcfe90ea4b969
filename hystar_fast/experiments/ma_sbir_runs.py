"""Figures of MA-SBIR, and of methods beside it, on the embedded drawings: outlines and sketches find pictures.

A figure is a tensor [n] over the queries of both styles, style after style.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import lru_cache

import torch
from torch import Tensor

from hystar_fast.data.image_set import ImageSet
from hystar_fast.data.open import open_images
from hystar_fast.experiments.embedded_runs import unseen_parts
from hystar_fast.methods.conversion import MEAN_SHIFT
from hystar_fast.methods.interface import GALLERY, QUERY, Method
from hystar_fast.retrieval.definitions import Metric
from hystar_fast.retrieval.embed import embed_records
from hystar_fast.retrieval.evaluate import ORIGINAL, measure_by
from hystar_fast.retrieval.modality_means import modality_means
from hystar_fast.retrieval.within_category import WITHIN, measure_within

SOURCE, STYLES = "emoji", ("outline", "sketch")
Figures = Mapping[str, tuple[str, str]]  # name -> the task, and the metric
FIGURES: Figures = {  # of the subgroup, and of the own concept
    "mAP@all": ("category", "mAP@all"),
    "Prec@5:shortened": ("category", "Prec@5:shortened"),
    "R@1": ("instance", "R@1"),
}
FINE_FIGURES: Figures = {  # of the own concept in its subgroup, and among all
    "Acc@1": (WITHIN, "R@1"),
    "Acc@5": (WITHIN, "R@5"),
    "Acc@1 of all": ("instance", "R@1"),
    "Acc@5 of all": ("instance", "R@5"),
}


@lru_cache(maxsize=1)
def training_drawings(styles: tuple[str, ...] = STYLES) -> ImageSet:
    """Return the training concepts in the gallery's style and `styles`, of which no subgroup is unseen."""
    images = open_images(SOURCE, "train")
    kept = (images.gallery_style, *styles)
    return replace(images, records=tuple(record for record in images.records if record.style in kept))


def ma_sbir_parts() -> dict[str, ImageSet]:
    """Return `unseen_parts`, and "test", the whole test split."""
    return unseen_parts(SOURCE) | {"test": open_images(SOURCE, "test")}


def fine_parts() -> dict[str, ImageSet]:
    """Return `unseen_parts`, the larger first: a subgroup of the test split has three drawings."""
    found = unseen_parts(SOURCE)
    return {name: found[name] for name in ("unseen-all", "unseen")}


def chance_within(images: ImageSet) -> float:
    """Return the expected Acc@1 of random rankings within the subgroup, in per cent."""
    sizes: dict[str | None, int] = {}
    for record in images.gallery:
        sizes[record.category] = sizes.get(record.category, 0) + 1
    return 100 * len(sizes) / max(1, len(images.gallery))


def ma_sbir_figures(method: Method, images: ImageSet, wanted: Figures = FIGURES) -> dict[str, dict[str, Tensor]]:
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
        for name, conversion in method.conversions().items():
            moved[name] = conversion(queries.vectors, style, images.gallery_style)
        for way, vectors in moved.items():
            asked = replace(queries, vectors=vectors)
            for name, (task, word) in wanted.items():
                metrics = [Metric.parse(word)]
                if task == WITHIN:
                    measured = measure_within(asked, gallery, metrics, method.similarity)
                else:
                    measured = measure_by(task, asked, gallery, metrics, method.similarity)
                found.setdefault(way, {}).setdefault(name, []).append(measured.values[metrics[0]])
    return {way: {name: torch.cat(values) for name, values in figures.items()} for way, figures in found.items()}


def figures_by(way: str, wanted: Figures = FIGURES) -> Callable[[Method, ImageSet], dict[str, Tensor]]:
    """Return what measures queries of a way, with the figures of original and mean-shifted ones beside.

    Args:
        way: "original", "converted" or "mean shift". Without trained vectors original queries stand for converted ones.
        wanted: the figures.
    """

    def measured(method: Method, images: ImageSet) -> dict[str, Tensor]:
        found = ma_sbir_figures(method, images, wanted)
        others = {f"{name}, {one}": values for one in (ORIGINAL, MEAN_SHIFT) for name, values in found[one].items()}
        return {**found.get(way, found[ORIGINAL]), **others}

    return measured
