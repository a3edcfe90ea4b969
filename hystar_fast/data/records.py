"""What every data set is here: records of a picture's place, style, category, instance and caption.

A loader lists records and opens nothing but text; pictures are read in batches when they are embedded. One that cannot
be read is left out, and named and counted in `Skipped`: a data set with holes gives figures that say so.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from hystar_fast.methods.inputs import PictureReader
from hystar_fast.retrieval.embed import load_image

_READERS = 8
NO_SPLITS = "all (this data has no splits; part of it may have been trained on)"


@dataclass(frozen=True)
class Record:
    """One picture.

    Attributes:
        path: where it is, relative to the data set.
        style: what kind of picture: a photo, a sketch, a thumbnail.
        category: what is in it; None where the data set does not say.
        instance: which very picture of the gallery it belongs to, shared by a gallery picture and its queries; None
            where there is no such picture.
        caption: its words; None where there are none.
    """

    path: str
    style: str
    category: str | None = None
    instance: str | None = None
    caption: str | None = None


@dataclass(frozen=True)
class Skipped:
    """Something of a data set that was left out, and why."""

    path: str
    reason: str


@dataclass(frozen=True)
class ImageSet:
    """A data set for retrieval.

    Attributes:
        name: of the data set.
        gallery_style: the style that answers; every other one asks.
        records: all pictures, in the order of the data set.
        read: opens the picture of a record; ValueError if that is not possible.
        skipped: what the loader has left out.
        classes: the categories in the order of the data set, where it has one of its own.
        splits: whether the data set itself says which pictures are for training and which for testing. Where it does
            not, every split that is asked for is the whole of it.
    """

    name: str
    gallery_style: str
    records: tuple[Record, ...]
    read: Callable[[Record], Image.Image]
    skipped: tuple[Skipped, ...] = ()
    classes: tuple[str, ...] = ()
    splits: bool = False

    @property
    def styles(self) -> tuple[str, ...]:
        """The styles, the gallery's first and the others in the order of the records."""
        return tuple(dict.fromkeys((self.gallery_style, *(record.style for record in self.records))))

    @property
    def has_gallery(self) -> bool:
        """Whether any picture is of the gallery's style."""
        return any(record.style == self.gallery_style for record in self.records)

    def asked_split(self, split: str) -> str:
        """What figures on this set are of, to be written beside them: the split, or `NO_SPLITS`."""
        return split if self.splits else NO_SPLITS

    def of_style(self, style: str) -> tuple[Record, ...]:
        """The records of one style.

        Raises:
            ValueError: there is none.
        """
        found = tuple(record for record in self.records if record.style == style)
        if not found and style in self.styles:
            raise ValueError(f"{self.name} has no picture of {style!r}, the style that answers, in this part")
        if not found:
            raise ValueError(f"style must be one of {self.styles} of {self.name}, got {style!r}")
        return found

    def select(self, *, categories: Collection[str] | None = None, limit: int | None = None) -> ImageSet:
        """A smaller set: only some categories, and at most `limit` records of each style, spread evenly.

        Of the queries that belong to one picture of the gallery, those of a picture that was kept are kept.

        Raises:
            ValueError: a category that is not in the set, or `limit` below 1.
        """
        kept = self.records
        if categories is not None:
            unknown = sorted(set(categories) - {record.category for record in self.records if record.category})
            if unknown:
                raise ValueError(f"categories must be categories of {self.name}, got {unknown[0]!r}")
            kept = tuple(record for record in kept if record.category in categories)
        if limit is not None:
            if limit < 1:
                raise ValueError(f"limit must be at least 1, got {limit}")
            answers = _spread([record for record in kept if record.style == self.gallery_style], limit)
            instances = {record.instance for record in answers}
            chosen = [*answers]
            for style in self.styles[1:]:
                asked = [record for record in kept if record.style == style]
                chosen += _spread([r for r in asked if r.instance is None or r.instance in instances], limit)
            kept = tuple(chosen)
        return replace(self, records=kept)


def _spread(records: list[Record], limit: int) -> list[Record]:
    return records if len(records) <= limit else [records[i * len(records) // limit] for i in range(limit)]


def from_folder(root: Path) -> Callable[[Record], Image.Image]:
    """Reads the pictures of records whose paths are relative to `root`."""
    return lambda record: load_image(root / record.path)


def read_images(
    images: ImageSet,
    records: Sequence[Record],
    reader: PictureReader,
    skipped: list[Skipped],
    *,
    batch_size: int = 128,
) -> Iterator[tuple[list[int], Tensor]]:
    """Read pictures in batches.

    Args:
        images: the data set the records are of.
        records: what to read.
        reader: how a picture becomes a tensor: the `reader` of the method that gets them.
        skipped: gets an entry for each picture that cannot be read.
        batch_size: records a batch; a batch with unreadable pictures is smaller.

    Yields:
        The positions in `records` of the pictures of a batch, and uint8 [n, 3, *reader.size]; no empty batch.
    """
    with ThreadPoolExecutor(min(_READERS, os.cpu_count() or 1)) as readers:
        for start in range(0, len(records), batch_size):
            rows, tensors = [], []
            batch = records[start : start + batch_size]
            # Decoding lets other threads run, and the order is that of the records.
            for row, found in enumerate(readers.map(lambda record: _read(images, record, reader), batch), start):
                if isinstance(found, Skipped):
                    skipped.append(found)
                else:
                    rows.append(row)
                    tensors.append(found)
            if rows:
                yield rows, torch.stack(tensors)


def _read(images: ImageSet, record: Record, reader: PictureReader) -> Tensor | Skipped:
    try:
        picture = images.read(record)
    except ValueError as error:
        return Skipped(record.path, str(error))
    return reader.read(picture)


def place_by_hash(name: str, purpose: str = "") -> float:
    """Where a name falls in [0, 1): everywhere the same, so that shares of a data set can be taken without a file.

    Shares of shares need different purposes: what fell below 0.2 for one of them always falls below 0.2 for that one.
    """
    digest = hashlib.blake2b(name.encode(), digest_size=8, person=purpose.encode())
    return int.from_bytes(digest.digest(), "big") / 2**64


def refuse(name: str, root: Path, expected: str, found: str | None = None) -> ValueError:
    """The error of a layout that does not fit; without `found` it lists what is in `root`."""
    if found is None:
        entries = sorted(p.name + "/" * p.is_dir() for p in root.iterdir()) if root.is_dir() else []
        shown = ", ".join(entries[:12]) + (f" and {len(entries) - 12} more" if len(entries) > 12 else "")
        found = shown or ("an empty folder" if root.is_dir() else "no folder there")
    return ValueError(f"{root} does not have the layout of {name}. Expected: {expected}. Found: {found}")


def check_some_exist(name: str, root: Path, records: Sequence[Record], expected: str) -> None:
    """ValueError if the folder holds none of the pictures its lists name."""
    if records and not any((root / record.path).is_file() for record in records):
        raise refuse(
            name, root, expected, f"none of the {len(records)} pictures listed, the first being {records[0].path}"
        )
