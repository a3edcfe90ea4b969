"""Open the data of a run that trains by category, and hold out some of its categories to select the model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from hystar_fast.data.hold_out import Shares
from hystar_fast.data.image_set import ImageSet
from hystar_fast.data.images import Resize
from hystar_fast.data.open import open_images
from hystar_fast.data.unseen import CategorySplit, hold_out_categories
from hystar_fast.methods.interface import Method
from hystar_fast.retrieval.definitions import Metric
from hystar_fast.retrieval.evaluate import evaluate
from hystar_fast.train.category_pairs import CategoryPairs
from hystar_fast.train.data_record import DataRecord
from hystar_fast.train.settings import DataSettings
from hystar_fast.train.validation import Score

METRIC = Metric.parse("mAP@all")
_HELD_OUT = 0.1  # of the categories, with data.validation = "val"


@dataclass(frozen=True)
class CategoryData:
    """The data of a run by category.

    Attributes:
        styles: the query styles.
        training: the pictures to train on, without their instances and without unseen categories.
        score: the mean over the query styles of mAP@all on the categories that are held out, with each style's; None
            without any.
        notes: lines that say what was read, and what is held out.
        metric: what `score` returns.
        record: names the categories that take no part; an adapter is saved with it.
    """

    styles: tuple[str, ...]
    training: ImageSet
    score: Callable[[Method], Score] | None
    notes: tuple[str, ...]
    record: DataRecord
    metric: str = str(METRIC)

    def pairs(self, resize: Resize, batch_size: int, seed: int, flip: float) -> CategoryPairs:
        """Return the training batches."""
        return CategoryPairs(self.training, self.styles, resize, batch_size=batch_size, seed=seed, flip=flip)


def open_categories(data: DataSettings) -> CategoryData:
    """Open the training categories, and hold some out to select the model.

    Args:
        data: the settings; ``unseen`` names the categories that take no part; ``validation`` "val" holds out a tenth of
            the others by a hash of their names, a share so many of them, and "none" none: then the last step is kept,
            as in published runs.

    Raises:
        ValueError: no such data or style, no categories, an unseen name that matches none (the message has the
            nearest), or a validation that is no share of them.
    """
    whole = open_images(data.source, "train", gallery_style=data.gallery_style or None, styles=data.styles)
    if not whole.has_categories:
        raise ValueError(f"data.source must have categories to train on them, got {whole.name}, which has none")
    division = CategorySplit.of(data.unseen, whole) if data.unseen else CategorySplit("", whole.unseen_categories)
    seen = division.training(whole)
    images = replace(seen, records=tuple(replace(r, instance=None) for r in seen.records))
    images = images.select(limit=data.limit or None)
    styles = tuple(data.styles) or images.query_styles
    record = DataRecord.of(data.source, whole, Shares(0.0, 0.0), division.unseen, division.name)
    left_out = f"; {len(division.unseen)} unseen categories of {division.name} take no part" if data.unseen else ""
    share = _share(data.validation)
    if share is None:
        return CategoryData(
            styles, images, None, (f"read {images.summary}; no category is held out{left_out}",), record
        )
    training, validation = hold_out_categories(images, share, least=1)
    held = len({record.category for record in validation.records})
    return CategoryData(
        styles,
        training,
        lambda method: score_categories(method, validation, styles),
        (f"read {images.summary}; {held} categories are held out for validation{left_out}",),
        record,
    )


def score_categories(method: Method, images: ImageSet, styles: tuple[str, ...]) -> Score:
    """Return the mean over kinds of query of mAP@all, each kind's, and of a single kind the interval.

    Raises:
        ValueError: no query has a relevant item in the gallery.
    """
    found = evaluate(method, images, task="category", metrics=[METRIC], kinds=styles)
    values = {result.kind: value for result in found.kinds if (value := result.values[str(METRIC)]) is not None}
    if not values:
        raise ValueError("data.validation must give queries with a relevant item, got none: hold out more categories")
    means = {kind: value.value for kind, value in values.items()}
    figures: dict[str, Any] = {str(METRIC): means}
    if len(values) == 1:
        (value,) = values.values()
        figures["interval"] = {"low": value.low, "high": value.high}
    return sum(means.values()) / len(means), figures


def _share(validation: str | float) -> float | None:
    """Return the share of the categories to hold out; None for none."""
    if validation == "none":
        return None
    share = _HELD_OUT if validation == "val" else validation
    if not isinstance(share, float) or not 0 < share < 1:
        raise ValueError(
            "data.validation must be 'val', 'none' or the share of the categories to hold out for a method that trains "
            f"by category, got {validation!r}"
        )
    return share
