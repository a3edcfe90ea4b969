"""The representation of every data set: records of a picture's path, style, category, instance and captions.

A loader lists records and opens text files only. Pictures are read in batches when they are needed. A picture that
cannot be read is skipped and listed (`Skipped`), so that results state how many pictures are missing.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from hystar_fast.data.images import Resize, least_side, load_image
from hystar_fast.data.read_ahead import read_ahead

CLASS_TEMPLATES = ("a photo of a {}.",)
RESERVED_STYLES = ("text", "joint")
"""Names of kinds of query that are no style of pictures: captions, and captions with pictures."""


@dataclass(frozen=True)
class Record:
    """One picture.

    Attributes:
        path: its place, relative to the data set.
        style: its kind: photo, sketch, thumbnail.
        category: what it shows; None where the data set does not say.
        instance: the gallery picture it belongs to, shared by a gallery picture and its queries; None where there is
            no such picture.
        captions: its texts; each is a query of its own in evaluation, and training draws one of them.
    """

    path: str
    style: str
    category: str | None = None
    instance: str | None = None
    captions: tuple[str, ...] = ()

    @property
    def caption(self) -> str | None:
        """The first caption; None where there are none."""
        return self.captions[0] if self.captions else None

    def with_each_caption(self) -> tuple[Record, ...]:
        """Return a record for each caption, with that one alone."""
        return tuple(replace(self, captions=(caption,)) for caption in self.captions)


@dataclass(frozen=True)
class Skipped:
    """A picture or text that was left out, and the reason."""

    path: str
    reason: str


@dataclass(frozen=True)
class ImageSet:
    """A data set for retrieval.

    Attributes:
        name: of the data set.
        gallery_style: the style of the gallery; pictures of every other style are queries.
        records: all pictures, in the order of the data set.
        read: opens the picture of a record; ValueError if that is not possible.
        skipped: files that the loader excluded, with reasons.
        classes: the categories in the data set's own order, where it has one.
        has_splits: whether the data set defines a training and a test split. If not, every split is the whole data set.
        is_registered: whether a query is drawn in the frame of its gallery picture: same place, size and turn.
        headline_styles: the query styles whose mean is the headline figure; empty for all of them.
        unseen_categories: categories that are never in the training split.
        templates: sentences for the name of a category, each with one ``{}``.
    """

    name: str
    gallery_style: str
    records: tuple[Record, ...]
    read: Callable[[Record], Image.Image]
    skipped: tuple[Skipped, ...] = ()
    classes: tuple[str, ...] = ()
    has_splits: bool = False
    is_registered: bool = False
    headline_styles: tuple[str, ...] = ()
    unseen_categories: frozenset[str] = frozenset()
    templates: tuple[str, ...] = CLASS_TEMPLATES

    def __post_init__(self) -> None:
        spelling: dict[str, str] = {}
        for style in self.styles:
            if spelling.setdefault(style.lower(), style) != style:
                raise ValueError(
                    f"styles must differ in more than upper and lower case, got {spelling[style.lower()]!r} and "
                    f"{style!r} in {self.name}; write both in one way"
                )
        reserved = next((style for style in self.styles if style.lower() in RESERVED_STYLES), None)
        if reserved is not None:
            raise ValueError(
                f"a style must not be named {' or '.join(map(repr, RESERVED_STYLES))}, which stand for captions, got "
                f"{reserved!r} in {self.name}; rename it"
            )

    @property
    def styles(self) -> tuple[str, ...]:
        """The styles: the gallery's first, then the others in the order of the records."""
        return tuple(dict.fromkeys((self.gallery_style, *(record.style for record in self.records))))

    @property
    def query_styles(self) -> tuple[str, ...]:
        """The styles of the queries that are pictures."""
        return self.styles[1:]

    @property
    def gallery(self) -> tuple[Record, ...]:
        """The records of the gallery; may be empty."""
        return tuple(record for record in self.records if record.style == self.gallery_style)

    @property
    def has_instances(self) -> bool:
        return any(record.instance is not None for record in self.records)

    @property
    def has_categories(self) -> bool:
        return any(record.category is not None for record in self.records)

    @property
    def summary(self) -> str:
        """One line that says what was recognised, such as "40 pairs: sketches -> photos"."""
        gallery, queries = self.gallery, [r for r in self.records if r.style != self.gallery_style]
        styles = f"{', '.join(self.query_styles)} -> {self.gallery_style}"
        if not self.has_instances:
            kinds = len({record.category for record in self.records})
            return f"{len(queries)} queries and {len(gallery)} gallery pictures of {kinds} categories: {styles}"
        answered = {record.instance for record in gallery if record.instance is not None}
        alone = sum(record.instance not in answered for record in queries)
        rest = f"; {alone} queries belong to no gallery picture" if alone else ""
        return f"{len(queries) - alone} pairs: {styles}{rest}"

    def of_style(self, style: str) -> tuple[Record, ...]:
        """Return the records of one style.

        Raises:
            ValueError: there is none.
        """
        found = tuple(record for record in self.records if record.style == style)
        if not found and style == self.gallery_style:
            raise ValueError(f"{self.name} must have pictures of the gallery style {style!r} in this part, got none")
        if not found:
            raise ValueError(f"style must be one of {self.styles} of {self.name}, got {style!r}")
        return found

    def select(self, *, categories: Collection[str] | None = None, limit: int | None = None) -> ImageSet:
        """Return a smaller set: some categories only, and at most `limit` records of each style, spread evenly.

        Queries are kept where their gallery picture is kept.

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
            gallery = spread_evenly([record for record in kept if record.style == self.gallery_style], limit)
            instances = {record.instance for record in gallery}
            chosen = [*gallery]
            for style in self.query_styles:
                queries = [r for r in kept if r.style == style and (r.instance is None or r.instance in instances)]
                chosen += spread_evenly(queries, limit)
            kept = tuple(chosen)
        return replace(self, records=kept)


def spread_evenly(records: Sequence[Record], limit: int) -> list[Record]:
    """Return at most `limit` of the records, at even distances."""
    count = len(records)
    return list(records) if count <= limit else [records[i * count // limit] for i in range(limit)]


@dataclass(frozen=True)
class FolderReader:
    """Reads the pictures of records whose paths are relative to `root`."""

    root: Path

    def __call__(self, record: Record) -> Image.Image:
        return self.reduced(record, 0)

    def reduced(self, record: Record, least: int) -> Image.Image:
        """Read a picture at a size whose shorter side may be as small as `least`, see `decode_image`."""
        return load_image(self.root / record.path, least=least)


def read_images(
    images: ImageSet,
    records: Sequence[Record],
    resize: Resize,
    skipped: list[Skipped],
    *,
    batch_size: int = 128,
) -> Iterator[tuple[list[int], Tensor]]:
    """Read pictures in batches; the next two are decoded while the caller works on one.

    Args:
        images: the data set of the records.
        records: what to read.
        resize: of the method that gets the pictures.
        skipped: gets an entry for each picture that cannot be read.
        batch_size: records a batch; a batch with unreadable pictures is smaller.

    Yields:
        The positions in `records` of the pictures of a batch, and uint8 [n, 3, *resize.size]; never an empty batch.
    """
    rows: list[int] = []
    tensors: list[Tensor] = []
    ahead = read_ahead(lambda record: _read(images, record, resize), records, window=2 * batch_size)
    for row, found in enumerate(ahead):
        if isinstance(found, Skipped):
            skipped.append(found)
        else:
            rows.append(row)
            tensors.append(found)
        if rows and ((row + 1) % batch_size == 0 or row + 1 == len(records)):
            yield rows, torch.stack(tensors)
            rows, tensors = [], []


def read_by_path(
    images: ImageSet, records: Sequence[Record], resize: Resize, skipped: dict[str, str]
) -> dict[str, Tensor]:
    """Read pictures once each, and return uint8 [3, *resize.size] by their paths.

    Args:
        images: the data set of the records.
        records: what to read; several may have one path.
        resize: of the method that gets the pictures.
        skipped: path -> reason of pictures that cannot be read. These are not tried again, and others are added.
    """
    wanted = [*{record.path: record for record in records if record.path not in skipped}.values()]
    unread: list[Skipped] = []
    found: dict[str, Tensor] = {}
    for rows, pictures in read_images(images, wanted, resize, unread):
        found |= {wanted[row].path: picture for row, picture in zip(rows, pictures, strict=True)}
    skipped |= {entry.path: entry.reason for entry in unread}
    return found


def _read(images: ImageSet, record: Record, resize: Resize) -> Tensor | Skipped:
    try:
        if isinstance(images.read, FolderReader):
            picture = images.read.reduced(record, least_side(resize))
        else:
            picture = images.read(record)
    except ValueError as error:
        return Skipped(record.path, str(error))
    return resize(picture)


def layout_error(name: str, root: Path, expected: str, found: str | None = None) -> ValueError:
    """Return the error for a layout that does not fit; without `found` it lists the content of `root`."""
    if found is None:
        entries = sorted(p.name + "/" * p.is_dir() for p in root.iterdir()) if root.is_dir() else []
        shown = ", ".join(entries[:12]) + (f" and {len(entries) - 12} more" if len(entries) > 12 else "")
        found = shown or ("an empty folder" if root.is_dir() else "no folder there")
    return ValueError(f"{root} does not have the layout of {name}. Expected: {expected}. Found: {found}")


def check_some_exist(name: str, root: Path, records: Sequence[Record], expected: str) -> None:
    """Raise ValueError if none of the listed pictures is in the folder."""
    if records and not any((root / record.path).is_file() for record in records):
        found = f"none of the {len(records)} pictures listed, the first being {records[0].path}"
        raise layout_error(name, root, expected, found)
