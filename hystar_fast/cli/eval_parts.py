"""The part of a data set that an evaluation uses: in data without splits, what the adapter was not trained on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from hystar_fast.data.hold_out import Shares
from hystar_fast.data.image_set import ImageSet
from hystar_fast.data.open import open_images
from hystar_fast.data.unseen import HALF, CategorySplit
from hystar_fast.train.data_record import DataRecord

SPLITS = ("val", "test", "all")


@dataclass(frozen=True)
class Part:
    """The pictures of an evaluation, the split as results name it, and a line that says which part this is."""

    images: ImageSet
    label: str
    line: str


def choose_part(images: ImageSet, source: str, split: str | None, adapter: Path | None) -> Part:
    """Return the part of a data set to evaluate on.

    Args:
        images: the whole data set, or its split if it has splits.
        source: of the data, as the user gave it.
        split: one of `SPLITS`; None for "test" in data with splits, and otherwise for all pictures that the adapter was
            not trained on.
        adapter: the folder of the adapter; None for a method without training.

    Raises:
        ValueError: a split that the data does not have, or that the adapter was trained on.
    """
    if images.has_splits and split == "all":
        raise ValueError(f"split must be val or test for {images.name}, which has splits of its own, got 'all'")
    if images.has_splits:
        return Part(images, split or "test", "")
    total = f"{len(images.gallery)} gallery pictures of {images.name}"
    record = None if adapter is None else DataRecord.read(adapter)
    if record is None or not record.is_of(source, images):
        return _of_other_data(images, split, total, adapter, record)
    if record.unseen:
        named = f" of {record.division}" * bool(record.division)
        line = f"all {total}: the adapter was trained on them, but not on the {len(record.unseen)} unseen categories"
        return Part(images, "all, including training data", f"{line}{named}: see --unseen")
    shares = record.shares
    held = "test" if shares.test_below > 0 else "val" if shares.validation_below > 0 else "all"
    chosen = split or held
    if chosen == "all":
        also = "all of them" if held == "all" else "part of them"
        return Part(images, "all, including training data", f"all {total}: the adapter was trained on {also}")
    part = shares.part(images, chosen)
    if not part.gallery:
        raise ValueError(
            f"split must be {held!r} for this adapter and its own training data, got {split!r}: it was trained without "
            "holding that part out"
        )
    why = "held out from training" if chosen == "test" else "held out from training, but they selected the adapter"
    return Part(part, f"{chosen}: {why}", f"{len(part.gallery)} of {total}: {why}")


def _of_other_data(
    images: ImageSet, split: str | None, total: str, adapter: Path | None, record: DataRecord | None
) -> Part:
    if split in ("test", "val"):
        part = Shares.of(images).part(images, split)
        which = "by hash, the part that train holds out by default"
        return Part(part, f"{split}: held out {which}", f"{len(part.gallery)} of {total}: the {split} part {which}")
    if adapter is None:
        line = f"all {total}; --split test for the part that train holds out, to compare with an adapter"
        return Part(images, "all", line)
    if record is None:
        line = f"all {total}; it is not known whether the adapter was trained on some of them"
        return Part(images, "all, the training data of the adapter is unknown", line)
    return Part(images, "all", f"all {total}; the adapter was trained on other data, {record.place}")


def unseen_division(images: ImageSet, source: str, adapter: Path | None, unseen: str) -> CategorySplit:
    """Return the seen and unseen categories of an evaluation; of a half, those of the adapter's training.

    The halves of a split of the data are others than those of the whole where the split lacks a category.
    """
    record = None if adapter is None or not unseen.startswith(HALF) else DataRecord.read(adapter)
    if record is not None and record.division == unseen and record.is_of(source, images):
        return CategorySplit(unseen, frozenset(record.unseen))
    return CategorySplit.of(unseen, images)


def choose_unseen(
    images: ImageSet, source: str, split: str | None, adapter: Path | None, unseen: str, generalised: str | None
) -> Part:
    """Return the unseen categories of a data set, with seen pictures in the gallery if it is generalised.

    Args:
        images: the whole data set, or its split if it has splits.
        source: of the data, as the user gave it.
        split: of data with splits; None for "test".
        adapter: the folder of the adapter; None for a method without training.
        unseen: see `CategorySplit.of`.
        generalised: see `CategorySplit.generalised`; None for a gallery of unseen categories alone.

    Raises:
        ValueError: as those, a split of data that has none, or an adapter that was trained on one of the categories.
    """
    if split is not None and not images.has_splits:
        raise ValueError(f"split must be left out with unseen for {images.name}, which has no splits, got {split!r}")
    division = unseen_division(images, source, adapter, unseen)
    part = division.unseen_part(images) if generalised is None else division.generalised(images, generalised)
    if not part.gallery:
        raise ValueError(f"unseen must have gallery pictures in this part of {images.name}, got {unseen!r} without any")
    lines = [*division.sizes(images)]
    record = None if adapter is None else DataRecord.read(adapter)
    if record is not None and record.is_of(source, images):
        trained = sorted(division.unseen - {*record.unseen})
        if trained:
            raise ValueError(
                f"unseen must be categories that the adapter was not trained on, got {unseen!r} with {trained[0]!r}: "
                "train with data.unseen"
            )
    elif adapter is not None and not (images.has_splits and division.unseen <= images.unseen_categories):
        lines.append("it is not known whether the adapter was trained on these categories")
    if split == "all":
        lines.append("of all splits: pictures of the training splits may have been in the pretraining of the backbone")
    label = f"{split or 'test'}, " * images.has_splits + f"unseen categories of {unseen}"
    if generalised is not None:
        label += f", seen ones in the gallery: {generalised}"
        lines.append(f"generalised: {len(part.gallery):,} gallery pictures with those of seen categories")
    return Part(part, label, "\n".join(lines))


def support_part(
    images: ImageSet, source: str, support: str | None, unseen: str | None, adapter: Path | None = None
) -> ImageSet | None:
    """Return the part whose texts and pictures are the galleries of task "crossmodal"; None for the queries' own.

    Args:
        images: the part of the queries, before a choice of categories.
        source: of the data, as the user gave it.
        support: the split; None for that of the queries.
        unseen: see `CategorySplit.of`, of the queries' categories.
        adapter: the folder of the adapter; None for a method without training.

    Raises:
        ValueError: the data has no such split.
    """
    if support is None:
        return None
    if not images.has_splits:
        raise ValueError(f"support must be left out for {images.name}, which has no splits, got {support!r}")
    opened = open_images(source, support)
    return opened if unseen is None else unseen_division(images, source, adapter, unseen).unseen_part(opened)
