"""Figures of ACNet, and of methods beside it, on the embedded drawings: sketches find pictures of their subgroup."""

from __future__ import annotations

from torch import Tensor

from hystar_fast.data.image_set import ImageSet
from hystar_fast.data.open import open_images
from hystar_fast.data.unseen import OWN, CategorySplit
from hystar_fast.experiments.embedded_runs import measure_figures, unseen_parts
from hystar_fast.methods.interface import GALLERY, QUERY, Method, Role
from hystar_fast.retrieval.embed import embed_records

SOURCE, STYLE = "emoji", "sketch"
# of the subgroup, and of the own concept
_METRICS = {"category": ("mAP@all", "mAP@all:interpolated", "Prec@5:gallery"), "instance": ("R@1",)}


def acnet_parts() -> dict[str, ImageSet]:
    """Return `unseen_parts`, and "generalised": the queries of "unseen" in the gallery of the whole test split."""
    test = open_images(SOURCE, "test")
    return unseen_parts(SOURCE) | {"generalised": CategorySplit.of(OWN, test).generalised(test, "all")}


def acnet_figures(method: Method, images: ImageSet, role: Role = QUERY) -> dict[str, Tensor]:
    """Return the figures of every drawing by name, [n] between 0 and 1.

    Args:
        method: the encoder.
        images: the drawings of style `STYLE` and their gallery.
        role: of the drawings: as "query" they go through G, as "gallery" they do not.
    """
    queries = embed_records(method, images, images.of_style(STYLE), [], role=role)
    gallery = embed_records(method, images, images.gallery, [], role=GALLERY)
    return measure_figures(queries, gallery, _METRICS, method.similarity)
