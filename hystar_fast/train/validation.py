"""What a run is trained on and chosen by: the pairs of the training split, and R@1 on the validation split."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from hystar_fast.data.open import open_images
from hystar_fast.data.records import ImageSet
from hystar_fast.methods.interface import Method
from hystar_fast.retrieval.asked import recorded
from hystar_fast.retrieval.definitions import Metric
from hystar_fast.retrieval.evaluate import evaluate
from hystar_fast.retrieval.evaluate_images import evaluate_images
from hystar_fast.retrieval.metrics import Interval
from hystar_fast.retrieval.protocol import GALLERY_STYLE, IMAGE_STYLES, QUERY_STYLES, load_split
from hystar_fast.retrieval.seeds import restored
from hystar_fast.train.pairs import PairImages, Pairs, check_styles
from hystar_fast.train.records import RecordPairs, hold_out
from hystar_fast.train.settings import DataSettings

Scored = tuple[float, dict[str, Any]]


@dataclass(frozen=True)
class TrainingData:
    """What a run is trained on and chosen by.

    Attributes:
        styles: the query styles.
        items: how many pictures of the gallery are trained on.
        pairs: opens the training pairs for a method.
        score: the mean R@1 over the query styles on the validation split, each style's, and the 95 % interval of the
            mean; None without the split.
    """

    styles: tuple[str, ...]
    items: int
    pairs: Callable[[Method], Pairs]
    score: Callable[[Method], Scored] | None


def open_training(data: DataSettings) -> TrainingData:
    """Open the data of a run.

    Raises:
        ValueError: no such data, no such style, the style that answers among those that ask, or a validation split that
            is the test split or the training split.
    """
    if data.validation == "test":
        raise ValueError("data.validation must not be 'test': what chooses a model cannot measure it")
    return _emoji(data) if data.source == "emoji" else _records(data)


def _emoji(data: DataSettings) -> TrainingData:
    if data.validation not in ("val", "none"):
        raise ValueError(f"data.validation must be 'val' or 'none' for the embedded drawings, got {data.validation!r}")
    if data.gallery_style:
        raise ValueError(f"data.gallery_style must be empty for the embedded drawings, got {data.gallery_style!r}")
    styles, limit = tuple(data.styles) or IMAGE_STYLES, data.limit or None
    check_styles(styles, GALLERY_STYLE)
    wanted = tuple(dict.fromkeys((*QUERY_STYLES, *styles)))
    training = load_split("train", wanted, limit=limit)

    def score(method: Method) -> Scored:
        found = evaluate(method, load_split("val", wanted, limit=limit), styles=styles)
        recall = {style: float((ranks < 1).double().mean()) for style, ranks in found.ranks.items()}
        return _mean(recall, found.mean_recall(list(found.ranks), 1))

    chosen_by = None if data.validation == "none" else score
    return TrainingData(styles, len(training), lambda method: PairImages.of(method, training, styles), chosen_by)


def _records(data: DataSettings) -> TrainingData:
    gallery_style, limit = data.gallery_style or None, data.limit or None
    training = open_images(data.source, "train", gallery_style=gallery_style)
    held_out: ImageSet | None = None
    if isinstance(data.validation, float):
        training, held_out = hold_out(training, data.validation)
    elif data.validation != "none":
        try:
            held_out = open_images(data.source, data.validation, gallery_style=gallery_style)
        except ValueError as error:
            raise ValueError(
                f"data.validation = {data.validation!r} must be a split of {training.name} that can be opened, 'none' "
                f"or the share to hold out, such as 0.1: {error}"
            ) from error
        shared = {record.path for record in training.records} & {record.path for record in held_out.records}
        if shared:
            raise ValueError(
                f"data.validation = {data.validation!r} holds {len(shared)} pictures that are trained on, such as "
                f"{min(shared)}: {training.name} has no such split here; give the share to hold out, such as 0.1"
            )
    if not training.has_gallery:
        raise ValueError(f"data.validation = {data.validation!r} leaves no picture of {training.name} to train on")
    training = training.select(limit=limit)
    counted = RecordPairs(training, data.styles)
    styles = counted.styles
    if held_out is None:
        return TrainingData(styles, len(counted), lambda method: _pairs(method, training, styles), None)
    asked = _asking(held_out.select(limit=limit), styles)
    try:
        RecordPairs(asked, styles)
    except ValueError as error:
        raise ValueError(
            f"data.validation = {data.validation!r} leaves nothing to choose by: {error}; hold out a larger share"
        ) from error

    def score(method: Method) -> Scored:
        report = evaluate_images(method, asked, metrics=[Metric.parse("R@1")])
        rows = [row for row in report.rows if row.n]
        evaluation = restored(*recorded(asked, rows))
        recall = {row.queries: value.value for row in rows if (value := row.values["R@1"]) is not None}
        return _mean(recall, evaluation.mean_recall(list(evaluation.ranks), 1) if rows else None)

    return TrainingData(styles, len(counted), lambda method: _pairs(method, training, styles), score)


def _asking(images: ImageSet, styles: tuple[str, ...]) -> ImageSet:
    """What these styles ask, and nothing that only other rows of an evaluation are made of.

    Captions stay with the gallery where words ask; beside a picture they would make rows of both together.
    """
    words = "text" in styles
    kept = tuple(
        record if record.style == images.gallery_style and words else replace(record, caption=None)
        for record in images.records
        if record.style in (images.gallery_style, *styles)
    )
    return replace(images, records=kept)


def _pairs(method: Method, images: ImageSet, styles: tuple[str, ...]) -> RecordPairs:
    return RecordPairs(images, styles, method.reader)


def _mean(recall: dict[str, float], interval: Interval | None) -> Scored:
    if not recall or interval is None:
        raise ValueError("the validation split has no query that can be answered: set data.validation = 'none'")
    return sum(recall.values()) / len(recall), {"R@1": recall, "interval": {"low": interval.low, "high": interval.high}}
