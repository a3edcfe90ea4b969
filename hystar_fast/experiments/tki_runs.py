"""Figures of TKI, and of methods beside it, on the embedded drawings: every style asks for the drawings of the gallery.

A figure is a tensor [n] over the queries of all styles, style after style.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hystar_fast.data.image_set import ImageSet
from hystar_fast.data.open import open_images
from hystar_fast.data.unseen import OWN, CategorySplit
from hystar_fast.methods.interface import GALLERY, QUERY, Method
from hystar_fast.retrieval.definitions import Metric, measure
from hystar_fast.retrieval.domains import evaluate_domains
from hystar_fast.retrieval.embed import embed_records
from hystar_fast.retrieval.evaluate import number_labels

SOURCE = "emoji"
# of the subgroup, and of the own concept
METRICS = {"category": ("mAP@all", "mAP@200:capped", "Prec@5:gallery"), "instance": ("R@1",)}


def tki_parts() -> dict[str, ImageSet]:
    """Return "test", the test split, and "unseen", its subgroups of which no name trains."""
    test = open_images(SOURCE, "test")
    return {"test": test, "unseen": CategorySplit.of(OWN, test).unseen_part(test)}


def tki_figures(method: Method, images: ImageSet) -> dict[str, Tensor]:
    """Return the figures of every query of every style by name, [n] between 0 and 1.

    Args:
        method: the encoder.
        images: the drawings.
    """
    gallery = embed_records(method, images, images.gallery, [], role=GALLERY)
    found: dict[str, list[Tensor]] = {}
    for style in images.headline_styles or images.query_styles:
        queries = embed_records(method, images, images.of_style(style), [], role=QUERY)
        for by, names in METRICS.items():
            labels = number_labels([getattr(r, by) for r in (*queries.records, *gallery.records)])
            sides = labels[: len(queries.records)], labels[len(queries.records) :]
            metrics = [Metric.parse(name) for name in names]
            measured = measure(queries.vectors, gallery.vectors, *sides, metrics, similarity=method.similarity)
            for metric in metrics:
                found.setdefault(str(metric), []).append(measured.values[metric])
    return {name: torch.cat(values) for name, values in found.items()}


def tki_pairs(method: Method, images: ImageSet) -> Tensor:
    """Return mAP@all of the subgroup, [n] over the pictures of every style: its mean over the other styles that answer.

    It is nan where none has a relevant drawing.
    """
    metric = Metric.parse("mAP@all")
    found = evaluate_domains(method, images, [metric])
    by_style = [
        torch.stack([one.values[metric] for (asks, _), one in found.measured.items() if asks == style])
        for style in found.styles
    ]
    return torch.cat([values.nanmean(0) for values in by_style])
