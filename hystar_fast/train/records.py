"""Training pairs of any data set that `data.open` reads: pictures are read when a batch needs them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from hystar_fast.data.records import ImageSet, Record, Skipped, place_by_hash, read_images
from hystar_fast.methods.inputs import MiddleSquare, PictureReader
from hystar_fast.train.pairs import GALLERY, Loaded, check_styles

_PUBLISHED = MiddleSquare(224)


class RecordPairs:
    """A picture of the gallery and the queries that belong to it.

    Where the data set has instances, queries are those of the same instance. Where it has categories alone, they are
    those of the same category, and `labels` says which targets are therefore no negatives; it does so for copies of one
    instance too. A picture of the gallery without any query is left out. Pictures that cannot be read are named in
    `skipped`, after those that the data set has left out itself, and their pairs take no part.

    Args:
        images: the data set.
        styles: query styles, "text" among them if captions ask; by default every style but the gallery's.
        reader: how a picture becomes a tensor: the `reader` of the method that trains.

    Raises:
        ValueError: an unknown style, the gallery's, one given twice, or no picture with a query.
    """

    reads_files = True

    def __init__(self, images: ImageSet, styles: Sequence[str] = (), reader: PictureReader = _PUBLISHED) -> None:
        self.images, self.reader = images, reader
        self.styles = tuple(styles) or images.styles[1:]
        check_styles(self.styles, images.gallery_style)
        self.skipped = {entry.path: entry.reason for entry in images.skipped}
        self.text_column = self.styles.index("text") if "text" in self.styles else -2
        gallery = images.of_style(images.gallery_style)
        asked = [record for record in images.records if record.style in self.styles] or gallery
        by_instance = any(record.instance is not None for record in asked)
        key: Callable[[Record], str | None] = (lambda r: r.instance) if by_instance else (lambda r: r.category)
        asking: list[dict[str, list[Record]]] = []
        for style in self.styles:
            found: dict[str, list[Record]] = defaultdict(list)
            for record in () if style == "text" else images.of_style(style):
                name = key(record)
                if name is not None:
                    found[name].append(record)
            asking.append(found)
        self.gallery: list[Record] = []
        self._queries: list[list[list[Record]]] = []
        for record in gallery:
            name = key(record)
            queries = [[] if name is None else found.get(name, []) for found in asking]
            if any(queries) or (self.text_column >= 0 and record.caption):
                self.gallery.append(record)
                self._queries.append(queries)
        if not self.gallery:
            raise ValueError(f"{images.name} has no picture of {images.gallery_style!r} with a query in {self.styles}")
        self.texts = [record.caption or "" for record in self.gallery]
        names = [i if (name := key(record)) is None else name for i, record in enumerate(self.gallery)]
        number = {name: i for i, name in enumerate(dict.fromkeys(names))}
        copies = len(number) < len(names)
        self.labels = torch.tensor([number[name] for name in names]) if copies or not by_instance else None

    def __len__(self) -> int:
        return len(self.gallery)

    def rows(self, style: str) -> Tensor:
        column = self.styles.index(style)
        if style == "text":
            return torch.tensor([bool(text) for text in self.texts]).nonzero().flatten()
        return torch.tensor([bool(queries[column]) for queries in self._queries]).nonzero().flatten()

    def load(self, concepts: Tensor, columns: Tensor, draws: Tensor) -> Loaded:
        records = []
        for concept, column, draw in zip(concepts.tolist(), columns.tolist(), draws.tolist(), strict=True):
            chosen = [self.gallery[concept]] if column == GALLERY else self._queries[concept][column]
            records.append(chosen[int(draw * len(chosen))])
        pictures = torch.full((len(records), 3, *self.reader.size), 255, dtype=torch.uint8)
        readable = torch.zeros(len(records), dtype=torch.bool)
        skipped: list[Skipped] = []
        for rows, found in read_images(self.images, records, self.reader, skipped):
            pictures[rows] = found
            readable[rows] = True
        self.skipped |= {entry.path: entry.reason for entry in skipped}
        return Loaded(pictures, None, readable)


def hold_out(images: ImageSet, share: float) -> tuple[ImageSet, ImageSet]:
    """Split a data set in two, the second with about `share` of the instances (without them: of the pictures).

    What is held out depends on the names alone, by their hash: it is the same on every machine and for every seed. A
    picture that stands in several pairs, and would be in both parts, is in the second alone.

    Raises:
        ValueError: `share` does not lie between 0 and 1.

    Example:
        >>> from hystar_fast.data.open import open_images
        >>> train, held_out = hold_out(open_images("emoji", "val"), 0.2)
        >>> {r.instance for r in train.records} & {r.instance for r in held_out.records}
        set()
    """
    if not 0 < share < 1:
        raise ValueError(f"a share that is held out must lie between 0 and 1, got {share}")

    held = tuple(record for record in images.records if place_by_hash(record.instance or record.path) < share)
    taken = {record.path for record in held}
    kept = tuple(record for record in images.records if record.path not in taken)
    return replace(images, records=kept), replace(images, records=held)
