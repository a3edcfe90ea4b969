"""Figures of TKI, and of methods beside it, on the embedded drawings, whose styles are the domains.

A figure is a tensor [n] over the queries of all styles, style after style.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hystar_fast.data.image_set import ImageSet
from hystar_fast.data.open import open_images
from hystar_fast.data.unseen import OWN, CategorySplit
from hystar_fast.methods.interface import Method
from hystar_fast.retrieval.definitions import Metric
from hystar_fast.retrieval.domains import embed_domains, rank_domains, rank_pair

SOURCE = "emoji"
# of the subgroup, and of the own concept
METRICS = {"category": ("mAP@all", "mAP@200:capped", "Prec@5:gallery"), "instance": ("R@1",)}
ALL_PAIRS = "mAP@all of all pairs"
# The heads that stand beside the one of the settings: name -> what they change of them.
EUCLIDEAN = {"TKI, geometry=euclidean": ("tki.geometry=euclidean",)}
WCCN = {"wccn": ("tki.head=wccn", "tki.steps_aggregation=1", "tki.select=last")}
STEPS = ("tki.steps_expansion", "tki.steps_aggregation")  # the settings that ``--steps`` changes
_MAP = Metric.parse("mAP@all")


def tki_parts() -> dict[str, ImageSet]:
    """Return "test", the test split, and "unseen", its subgroups of which no name trains."""
    test = open_images(SOURCE, "test")
    return {"test": test, "unseen": CategorySplit.of(OWN, test).unseen_part(test)}


def tki_figures(method: Method, images: ImageSet) -> dict[str, Tensor]:
    """Return the figures by name, values between 0 and 1.

    Those of `METRICS` are [n] over the queries of every style. `ALL_PAIRS` is mAP@all of the subgroup, [n] over the
    pictures of every style: its mean over the other styles that answer, nan where none has a relevant drawing.

    Args:
        method: the encoder.
        images: the drawings, of which every style is embedded once.
    """
    sides = embed_domains(method, images)
    found: dict[str, list[Tensor]] = {}
    for style in (style for style in images.headline_styles or images.query_styles if style in sides.asks):
        for by, names in METRICS.items():
            metrics = [Metric.parse(name) for name in names]
            measured = rank_pair(sides, style, images.gallery_style, metrics, method.similarity, by)
            for metric in metrics:
                found.setdefault(str(metric), []).append(measured.values[metric])
    pairs = rank_domains(sides, [_MAP], method.similarity)
    for style in pairs.styles:
        answers = [one.values[_MAP] for (asks, _), one in pairs.measured.items() if asks == style]
        found.setdefault(ALL_PAIRS, []).append(torch.stack(answers).nanmean(0))
    return {name: torch.cat(values) for name, values in found.items()}
