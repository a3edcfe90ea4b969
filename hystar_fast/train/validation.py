"""Open the data of a training run: the pairs of the training split, and the validation split that selects the model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from hystar_fast.data.hold_out import Shares, hold_out
from hystar_fast.data.image_set import ImageSet
from hystar_fast.data.open import open_images
from hystar_fast.methods.interface import Method
from hystar_fast.retrieval.definitions import Metric
from hystar_fast.retrieval.evaluate import evaluate
from hystar_fast.train.data_record import DataRecord
from hystar_fast.train.pairs import TEXT, TrainingPairs
from hystar_fast.train.settings import DataSettings

Score = tuple[float, dict[str, Any]]


@dataclass(frozen=True)
class TrainingData:
    """The data of a run.

    Attributes:
        styles: the query styles.
        items: how many gallery pictures are in the training pairs.
        pairs: opens the training pairs for a method.
        score: the mean R@1 over the query styles on the validation split, with each style's R@1 and the 95 % interval
            of the mean; None without a validation split.
        record: of data without splits; an adapter is saved with it.
        notes: lines that say what was read, and what is held out.
        metric: what `score` returns.
    """

    styles: tuple[str, ...]
    items: int
    pairs: Callable[[Method], TrainingPairs]
    score: Callable[[Method], Score] | None
    record: DataRecord | None = None
    notes: tuple[str, ...] = ()
    metric: str = "R@1"


def open_training(data: DataSettings) -> TrainingData:
    """Open the training and the validation split.

    In data without splits, "val" holds out 10 % of the pairs for validation and 20 % for a later evaluation.

    Raises:
        ValueError: no such data or style, the gallery style among the query styles, or a validation split that is the
            test split or overlaps the training split.
    """
    if data.validation == "test":
        raise ValueError("data.validation must not be 'test': the test split cannot select the model")
    limit = data.limit or None
    whole = _open(data, "train")
    training, validation, shares = _divide(data, whole)
    if not training.gallery:
        raise ValueError(f"data.validation must leave pictures of {training.name} to train on, got {data.validation!r}")
    record = None if whole.has_splits else DataRecord.of(data.source, whole, shares)
    notes = (f"read {whole.summary}", *(() if whole.has_splits else (_parts_line(whole, shares),)))
    training = training.select(limit=limit)
    counted = TrainingPairs(training, data.styles)
    styles = counted.styles

    def pairs(method: Method) -> TrainingPairs:
        return TrainingPairs(training, styles, method.resize)

    if validation is None:
        return TrainingData(styles, len(counted), pairs, None, record, notes)
    queried = validation.select(limit=limit)
    try:
        TrainingPairs(queried, styles)
    except ValueError as error:
        raise ValueError(
            f"data.validation must give queries for validation, got {data.validation!r}: {error}; hold out a larger "
            "share"
        ) from error
    return TrainingData(styles, len(counted), pairs, lambda method: score(method, queried, styles), record, notes)


def _divide(data: DataSettings, whole: ImageSet) -> tuple[ImageSet, ImageSet | None, Shares]:
    """Return the training and the validation part, and the shares of data without splits."""
    if data.validation == "none":
        return whole, None, Shares(0.0, 0.0)
    if isinstance(data.validation, float):
        return *hold_out(whole, data.validation), Shares(0.0, data.validation)
    if not whole.has_splits and data.validation == "val":
        shares = Shares.of(whole)
        return shares.part(whole, "train"), shares.part(whole, "val"), shares
    return whole, _validation_split(data, whole), Shares(0.0, 0.0)


def _parts_line(whole: ImageSet, shares: Shares) -> str:
    """Return a line that says what is held out of data without splits."""
    gallery = replace(whole, records=whole.gallery)
    test, validation = (len(shares.part(gallery, part).records) for part in ("test", "val"))
    rest = len(gallery.records) - test - validation
    if not test and not validation:
        return f"no splits, and nothing is held out: training on all {rest} gallery pictures"
    held = [f"{validation} for validation"] + ([f"{test} for eval"] if test else [])
    return f"no splits: of {len(gallery.records)} gallery pictures {' and '.join(held)} are held out, {rest} train"


def score(method: Method, images: ImageSet, styles: tuple[str, ...]) -> Score:
    """Return the mean R@1 over kinds of query, and each kind's R@1 with the interval of the mean.

    Raises:
        ValueError: no query has a relevant item in the gallery.
    """
    found = evaluate(method, images, metrics=[Metric.parse("R@1")], kinds=styles)
    recall = {result.kind: value.value for result in found.kinds if (value := result.values["R@1"]) is not None}
    interval = found.ranks.recall([*recall], 1) if recall else None
    if interval is None:
        raise ValueError(
            "data.validation must give queries with a relevant item, got none: set data.validation = 'none'"
        )
    mean = sum(recall.values()) / len(recall)
    return mean, {"R@1": recall, "interval": {"low": interval.low, "high": interval.high}}


def _open(data: DataSettings, split: str) -> ImageSet:
    pictures = [style for style in data.styles if style != TEXT]
    return open_images(data.source, split, gallery_style=data.gallery_style or None, styles=pictures)


def _validation_split(data: DataSettings, training: ImageSet) -> ImageSet:
    try:
        validation = _open(data, str(data.validation))
    except ValueError as error:
        raise ValueError(
            f"data.validation must be a split of {training.name} that can be opened, 'none' or the share to hold out, "
            f"such as 0.1, got {data.validation!r}: {error}"
        ) from error
    shared = {record.path for record in training.records} & {record.path for record in validation.records}
    if shared:
        raise ValueError(
            f"data.validation must be a split without training pictures, got {data.validation!r} with {len(shared)}, "
            f"such as {min(shared)}: {training.name} has no such split here; give the share to hold out, such as 0.1"
        )
    return validation
