"""Open the data of a run that trains by category, and hold out some of its categories to select the model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from hystar_fast.data.image_set import ImageSet, Record, read_by_path
from hystar_fast.data.images import Resize
from hystar_fast.data.open import open_images
from hystar_fast.data.unseen import CategorySplit, hold_out_categories
from hystar_fast.methods.conversion import CONVERTED
from hystar_fast.methods.interface import Method
from hystar_fast.methods.step_trained import Batching
from hystar_fast.retrieval.crossmodal import evaluate_crossmodal
from hystar_fast.retrieval.definitions import Metric
from hystar_fast.retrieval.evaluate import TEXT, evaluate
from hystar_fast.retrieval.within_category import WITHIN
from hystar_fast.train.captioned import CaptionedPictures
from hystar_fast.train.category_pairs import CategoryPairs
from hystar_fast.train.data_record import DataRecord
from hystar_fast.train.paired_batches import PairedBatches
from hystar_fast.train.settings import DataSettings
from hystar_fast.train.validation import Score

METRIC, WITHIN_METRIC = Metric.parse("mAP@all"), Metric.parse("R@1")
WITHIN_NAME = "R@1 within the category"
_HELD_OUT = 0.1  # of the categories, with data.validation = "val"


@dataclass(frozen=True)
class CategoryData:
    """The data of a run by category.

    Attributes:
        styles: the query styles.
        training: the pictures to train on, without unseen categories; without instances where batches are by category.
        score: the mean over the query styles of `metric` on the categories that are held out, with each style's; None
            without any.
        notes: lines that say what was read, and what is held out.
        batching: how batches are made; with pairs the instances are kept.
        drawn: the pictures that are no query and no answer: prototypes of labels.
        metric: what `score` returns.
        record: names the categories that take no part; an adapter is saved with it.
    """

    styles: tuple[str, ...]
    training: ImageSet
    score: Callable[[Method], Score] | None
    notes: tuple[str, ...]
    record: DataRecord
    batching: Batching
    drawn: tuple[Record, ...] = ()
    metric: str = str(METRIC)

    def batches(self, resize: Resize, batch_size: int, seed: int) -> CategoryPairs | PairedBatches | CaptionedPictures:
        """Return the training batches."""
        how, size = self.batching, batch_size
        if how.of == "captioned":
            return CaptionedPictures(self.training, self.styles, resize, how, batch_size=size, seed=seed)
        if how.of == "category":
            return CategoryPairs(self.training, self.styles, resize, batch_size=size, seed=seed, flip=how.flip)
        return PairedBatches(self.training, self.styles, resize, how, batch_size=size, seed=seed)

    def prototypes(self, resize: Resize, skipped: dict[str, str]) -> Tensor:
        """Read the pictures of the style of the prototypes whose instances train, uint8 [C, 3, H, W].

        Args:
            resize: of the method.
            skipped: path -> reason; gets those that cannot be read, which are left out.
        """
        trained = {record.instance for record in self.training.gallery}
        records = [r for r in self.drawn if r.style == self.batching.prototypes and r.instance in trained]
        found = read_by_path(self.training, records, resize, skipped)
        return torch.stack([*found.values()]) if found else torch.empty(0, 3, *resize.size, dtype=torch.uint8)


def open_categories(data: DataSettings, batching: Batching) -> CategoryData:
    """Open the training categories, and hold some out to select the model.

    Args:
        data: the settings; ``unseen`` names the categories that take no part; ``validation`` "val" holds out a tenth of
            the others by a hash of their names, a share so many of them, and "none" none: then the last step is kept,
            as in published runs. At least two are held out, as in one alone every picture is relevant; within the
            category one will do.
        batching: of the method.

    Raises:
        ValueError: no such data or style, no categories, an unseen name that matches none (the message has the
            nearest), or a validation that is no share of them.
    """
    wanted = [style for style in data.styles if style != TEXT]
    if (TEXT in data.styles and not batching.texts) or (wanted and batching.texts):
        needed = "['text'], as fgan.text_encoder reads texts" if batching.texts else "styles of pictures"
        raise ValueError(f"data.styles must be {needed}, got {data.styles}")
    if batching.prototypes and not (wanted or batching.texts):
        raise ValueError("data.styles must name the query styles beside the style of the prototypes, got none")
    read = [*wanted, *([batching.prototypes] if batching.prototypes else [])]
    whole = open_images(data.source, "train", gallery_style=data.gallery_style or None, styles=read)
    if not whole.has_categories:
        raise ValueError(f"data.source must have categories to train on them, got {whole.name}, which has none")
    division = CategorySplit.of(data.unseen, whole) if data.unseen else CategorySplit("", whole.unseen_categories)
    seen = division.training(whole)
    styles = (TEXT,) if batching.texts else tuple(wanted) or whole.query_styles
    drawn = tuple(r for r in seen.records if r.style == batching.prototypes)
    kept = tuple(r for r in seen.records if r.style in (seen.gallery_style, *styles))
    if batching.of == "category" or not whole.has_instances:
        kept = tuple(replace(r, instance=None) for r in kept)
    images = replace(seen, records=kept).select(limit=data.limit or None)
    record = DataRecord.of_split(data.source, whole, division)
    left_out = f"; {len(division.unseen)} unseen categories of {division.name} take no part" if data.unseen else ""
    summary = images.summary
    if batching.texts:
        captioned = [record for record in images.gallery if record.captions]
        kinds = len({record.category for record in captioned})
        summary = f"{len(captioned)} pictures with texts of {kinds} categories"
    if batching.of == "captioned":
        kinds = len({record.category for record in images.records})
        shown = ", ".join((images.gallery_style, *styles))
        summary = f"{len(images.records)} pictures of {kinds} categories: {shown}"
    share = _share(data.validation)
    metric = WITHIN_NAME if batching.within else str(METRIC)
    if share is None:
        note = f"read {summary}; no category is held out{left_out}"
        return CategoryData(styles, images, None, (note,), record, batching, drawn, metric)
    least = 1 if batching.within else 2
    if (kinds := len({record.category for record in images.records})) <= least:
        raise ValueError(f"data.validation must be 'none' for data of {kinds} categories, got {data.validation!r}")
    training, validation = hold_out_categories(images, share, least=least)
    held = len({record.category for record in validation.records})
    are = "category is" if held == 1 else "categories are"
    if not training.records:
        raise ValueError(
            f"data.validation must leave a category to train on, got {data.validation}: all {held} are held"
        )
    return CategoryData(
        styles,
        training,
        lambda method: score_categories(method, validation, styles, within=batching.within),
        (f"read {summary}; {held} {are} held out for validation{left_out}",),
        record,
        batching,
        drawn,
        metric,
    )


def score_categories(method: Method, images: ImageSet, styles: tuple[str, ...], *, within: bool = False) -> Score:
    """Return the mean over kinds of query of mAP@all, each kind's, and of a single kind the interval.

    With `within` it is R@1 of the own picture among those of its category. Of a method with a trained conversion the
    converted queries count, as that is the row it reports.

    Raises:
        ValueError: no query has a relevant item in the gallery.
    """
    metric = WITHIN_METRIC if within else METRIC
    if styles == (TEXT,):
        found = evaluate_crossmodal(method, images, relevant="category", metrics=[METRIC])
        found = replace(found, kinds=found.kinds[:2])
    else:
        found = evaluate(method, images, task=WITHIN if within else "category", metrics=[metric], kinds=styles)
        reported = tuple(result for result in found.kinds if result.kind.endswith(f"[{CONVERTED}]"))
        found = replace(found, kinds=reported or found.kinds)
    values = {result.kind: value for result in found.kinds if (value := result.values[str(metric)]) is not None}
    if not values:
        raise ValueError("data.validation must give queries with a relevant item, got none: hold out more categories")
    means = {kind: value.value for kind, value in values.items()}
    figures: dict[str, Any] = {str(metric): means}
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
