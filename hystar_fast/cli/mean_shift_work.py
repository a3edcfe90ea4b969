"""``hystar-fast mean-shift``: measure the mean vector of every style, by which eval and search can move queries."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from pathlib import Path

from hystar_fast.cli.open_method import open_method
from hystar_fast.data.hold_out import Shares
from hystar_fast.data.image_set import ImageSet, Skipped
from hystar_fast.data.open import open_images
from hystar_fast.data.unseen import CategorySplit
from hystar_fast.methods.adapter_files import save_method
from hystar_fast.methods.device import on_device, select_device
from hystar_fast.retrieval.modality_means import modality_means
from hystar_fast.terminal.console import Console
from hystar_fast.train.data_record import DATA_FILE, DataRecord


@dataclass(frozen=True)
class MeanShiftSettings:
    """Options of the command.

    Attributes:
        data: the data set, of which the training part is read.
        output: the folder of the adapter that is written.
        adapter: of a trained method; None for the frozen backbone.
        unseen: categories that take no part, as `CategorySplit.of` names them; None for those of the adapter.
        gallery_style: for folders, shards and icons, the style of the gallery.
        limit: at most so many pictures of each style.
        device: "auto", "cpu" or "cuda".
    """

    data: str
    output: Path
    adapter: Path | None
    unseen: str | None
    gallery_style: str | None
    limit: int | None
    device: str


def run_mean_shift(settings: MeanShiftSettings, console: Console, changes: dict[str, str | None]) -> None:
    """Write an adapter with the means of the styles of training pictures.

    Raises:
        ValueError: the data or the adapter cannot be used, or both folders are the same.
    """
    if settings.adapter is not None and settings.output.resolve() == settings.adapter.resolve():
        raise ValueError(f"output must be another folder than that of the adapter, got {settings.output} for both")
    training, made = _training(settings)
    images = training.select(limit=settings.limit)
    method = open_method(settings.adapter, None, changes, console)
    skipped: list[Skipped] = []
    method.style_means = modality_means(on_device(method, select_device(settings.device)), images, skipped)
    save_method(method, settings.output)
    if settings.adapter is not None and (settings.adapter / DATA_FILE).is_file():
        shutil.copy(settings.adapter / DATA_FILE, settings.output / DATA_FILE)
    elif settings.adapter is None and made is not None:
        made.save(settings.output)
    console.print(f"means of {', '.join(method.style_means)} over {len(images.records)} pictures of {images.name}")
    if skipped:
        console.print(f"skipped {len(skipped)} pictures, the first: {skipped[0].path}: {skipped[0].reason}")
    console.print(f"wrote {settings.output}")


def _training(settings: MeanShiftSettings) -> tuple[ImageSet, DataRecord | None]:
    """Return the pictures that an evaluation of the adapter leaves out, or without one the part for training.

    With them comes their record; None for data with splits of its own.
    """
    whole = open_images(settings.data, "train", gallery_style=settings.gallery_style)
    record = None if settings.adapter is None else DataRecord.read(settings.adapter)
    if record is not None and not record.is_of(settings.data, whole):
        record = None
    if record is not None and record.unseen:
        if settings.unseen is not None:
            own = record.division or "its data"
            raise ValueError(f"unseen must be left out for an adapter with those of {own}, got {settings.unseen!r}")
        kept = tuple(found for found in whole.records if found.category not in record.unseen)
        return replace(whole, records=kept), record
    if settings.unseen is not None:
        split = CategorySplit.of(settings.unseen, whole)
        return split.training(whole), DataRecord.of_split(settings.data, whole, split)
    if whole.has_splits:
        return whole, None
    shares = Shares.of(whole) if record is None else record.shares
    return shares.part(whole, "train"), record or DataRecord.of(settings.data, whole, shares)
