"""Retrieval between pictures and their texts in both directions: galleries of words and galleries of pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from hystar_fast.data.image_set import ImageSet, Record, Skipped
from hystar_fast.methods.interface import GALLERY, QUERY, Method
from hystar_fast.retrieval.definitions import Measured, Metric
from hystar_fast.retrieval.embed import Embedded, embed_records, embed_texts
from hystar_fast.retrieval.evaluate import (
    DEFAULT_METRICS,
    PROTOCOLS,
    Evaluation,
    KindResult,
    kind_result,
    measure_by,
)
from hystar_fast.retrieval.metrics import bootstrap_mean

CROSSMODAL = "crossmodal"
PICTURE_TO_TEXT, TEXT_TO_PICTURE, AVERAGE = "I2T", "T2I", "Avg"
RELEVANT = ("category", "instance")


@dataclass(frozen=True)
class _Part:
    """The pictures of a part that have texts, and the texts, a record each."""

    pictures: Embedded
    texts: Embedded


def evaluate_crossmodal(
    method: Method,
    images: ImageSet,
    support: ImageSet | None = None,
    *,
    relevant: str | None = None,
    style: str | None = None,
    metrics: Sequence[Metric] | None = None,
    batch_size: int = 128,
    progress: Callable[[int], object] | None = None,
) -> Evaluation:
    """Rank texts for pictures (I2T) and pictures for texts (T2I).

    A picture with several captions is as many texts. Pictures of the gallery's style are encoded as gallery pictures
    whether they ask or answer, those of another style as queries.

    Args:
        method: the system; it must take text.
        images: pictures with captions: the queries of both directions.
        support: pictures with captions: the galleries of both. None for `images` themselves.
        relevant: "category" (the same category) or "instance" (the own pair); by default "category" if both parts have
            categories.
        style: of the pictures; by default the gallery's.
        metrics: definitions; by default `DEFAULT_METRICS`.
        batch_size: images a forward pass.
        progress: called with the number of pictures after every batch.

    Returns:
        Kinds "I2T" and "T2I", and "Avg", their mean with an interval that resamples pairs and without ranks, where
        every picture has one text and both directions answer the same queries.

    Raises:
        ValueError: the method takes no text, a part has no picture with a caption in this style, or no labels for
            `relevant`.
        FloatingPointError: an embedding is not finite.
    """
    support_images = images if support is None else support
    by = relevant or ("category" if images.has_categories and support_images.has_categories else "instance")
    if by not in RELEVANT:
        raise ValueError(f"relevant must be one of {RELEVANT}, got {by!r}")
    for part in (images, support_images):
        if not (part.has_categories if by == "category" else part.has_instances):
            raise ValueError(f"images must have {by} labels for relevant={by!r}, got {part.name} without")
    chosen = DEFAULT_METRICS if metrics is None else metrics
    skipped: list[Skipped] = []

    def embedded(part: ImageSet) -> _Part:
        return _embed(method, part, style or part.gallery_style, skipped, batch_size, progress)

    asked = embedded(images)
    held = asked if support is None else embedded(support)
    results = [
        _measured(PICTURE_TO_TEXT, method, asked.pictures, held.texts, by, chosen),
        _measured(TEXT_TO_PICTURE, method, asked.texts, held.pictures, by, chosen),
    ]
    kinds = [kind_result(name, found, queries.records) for name, found, queries in results]
    average = _average(kinds, [found for _, found, _ in results])
    return Evaluation(
        images,
        CROSSMODAL,
        f"{PROTOCOLS['full']}; relevant: the same {by}",
        (f"pictures with {len(held.texts.records)} texts", len(held.pictures.records)),
        (*kinds, *(() if average is None else (average,))),
        (*images.skipped, *(() if support is None else support.skipped), *skipped),
    )


def _embed(
    method: Method,
    part: ImageSet,
    style: str,
    skipped: list[Skipped],
    batch_size: int,
    progress: Callable[[int], object] | None,
) -> _Part:
    records = [record for record in part.of_style(style) if record.captions]
    role = GALLERY if style == part.gallery_style else QUERY
    found = embed_records(method, part, records, skipped, role=role, batch_size=batch_size, progress=progress)
    if not found.records:
        raise ValueError(
            f"images must have readable pictures of style {style!r} with captions, got none in {part.name}"
        )
    texts = tuple(text for record in found.records for text in record.with_each_caption())
    words = embed_texts(method, [text.captions[0] for text in texts])
    if words is None:
        raise ValueError(f"method must take text for task {CROSSMODAL!r}, got {method.name!r}")
    return _Part(found, Embedded(texts, words.float()))


def _measured(
    name: str, method: Method, queries: Embedded, gallery: Embedded, by: str, metrics: Sequence[Metric]
) -> tuple[str, Measured, Embedded]:
    return name, measure_by(by, queries, gallery, metrics, method.similarity), queries


def _average(kinds: Sequence[KindResult], measured: Sequence[Measured]) -> KindResult | None:
    """Return the mean of both directions; None where they have different queries, or no answer."""
    one, two = kinds
    same = [_pair(record) for record in one.queries] == [_pair(record) for record in two.queries]
    if not same or not one.n or len(measured[0].first) != len(measured[1].first):
        return None
    values = {}
    for metric in measured[0].values:
        both = torch.stack([found.values[metric] for found in measured])
        values[str(metric)] = bootstrap_mean(both[:, ~both.isnan().any(dim=0)])
    chances = [kind.chance for kind in kinds if kind.chance is not None]
    ranks = torch.empty(0, dtype=torch.int64)
    return KindResult(AVERAGE, one.n, one.unanswerable, dict(values), ranks, (), sum(chances) / len(chances))


def _pair(record: Record) -> tuple[str, str]:
    return record.path, record.style
