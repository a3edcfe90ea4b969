"""Training pairs: a query (a picture in a query style, or a caption) and the gallery picture that it should find."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from hystar_fast.data.image_set import ImageSet, Record, Skipped, read_images
from hystar_fast.data.images import Resize, ResizeTo
from hystar_fast.methods.interface import Method
from hystar_fast.retrieval.embed import embed_styles
from hystar_fast.train.draws import draw_rows

GALLERY = -1  # stands for the gallery style among the indices of query styles
TEXT = "text"
PRELOAD_BYTES = 2**28
_DEFAULT_RESIZE = ResizeTo((224, 224))


@dataclass(frozen=True)
class PairBatch:
    """One batch.

    Attributes:
        items: int64 [B], the gallery picture of each pair.
        styles: int64 [B], the index of the style of each query.
        draws: [B] in [0, 1), selects one of several queries, or captions, of an item in one style.
    """

    items: Tensor
    styles: Tensor
    draws: Tensor


@dataclass(frozen=True)
class LoadedPictures:
    """Pictures of a batch.

    Attributes:
        images: uint8 [n, 3, H, W].
        style: the style vectors [n, d] of the pictures; None if they are not computed in advance.
        readable: bool [n], False where a picture could not be read and a white one takes its place.
    """

    images: Tensor
    style: Tensor | None
    readable: Tensor


@dataclass(frozen=True)
class _Preloaded:
    images: Tensor
    readable: Tensor
    style: Tensor | None
    position: dict[Record, int]


class TrainingPairs:
    """The gallery pictures of a data set, each with its queries.

    If the data set has instances, the queries of a picture are those of its instance. If it has categories only, they
    are those of its category, and `labels` says which targets are not negatives; it does so for copies of one instance
    too. Gallery pictures without a query are excluded. Unreadable pictures are listed in `skipped`, after those that
    the data set skipped itself, and their pairs are excluded from the loss.

    Args:
        images: the data set.
        styles: query styles; "text" for captions. By default every picture style but the gallery's, or "text" if the
            data set has no other.
        resize: of the method that trains.

    Attributes:
        labels: int64 [n]; a target with the label of a query's item is not among its negatives. None: all differ.
        texts: the captions of each item.
        skipped: path -> reason.

    Raises:
        ValueError: an unknown style, the gallery style, a style given twice, or no gallery picture with a query.
    """

    def __init__(self, images: ImageSet, styles: Sequence[str] = (), resize: Resize = _DEFAULT_RESIZE) -> None:
        self.images, self.resize = images, resize
        self.styles = tuple(styles) or images.query_styles or (TEXT,)
        _check_styles(self.styles, images.gallery_style)
        self.skipped = {entry.path: entry.reason for entry in images.skipped}
        self._preloaded: _Preloaded | None = None
        gallery = images.of_style(images.gallery_style)
        query_records = [record for record in images.records if record.style in self.styles] or gallery
        by_instance = any(record.instance is not None for record in query_records)
        key: Callable[[Record], str | None] = (lambda r: r.instance) if by_instance else (lambda r: r.category)
        by_style = [_by_key(() if style == TEXT else images.of_style(style), key) for style in self.styles]
        self.gallery: list[Record] = []
        self._queries: list[list[list[Record]]] = []
        for record in gallery:
            name = key(record)
            queries = [[] if name is None else found.get(name, []) for found in by_style]
            if any(queries) or (TEXT in self.styles and record.captions):
                self.gallery.append(record)
                self._queries.append(queries)
        if not self.gallery:
            raise ValueError(
                f"styles must give a picture of {images.gallery_style!r} in {images.name} a query, got {self.styles}"
            )
        self.texts = [record.captions for record in self.gallery]
        names = [i if (name := key(record)) is None else name for i, record in enumerate(self.gallery)]
        number = {name: i for i, name in enumerate(dict.fromkeys(names))}
        has_copies = len(number) < len(names)
        self.labels = torch.tensor([number[name] for name in names]) if has_copies or not by_instance else None

    def __len__(self) -> int:
        return len(self.gallery)

    def identity(self) -> str:
        """Describe the pairs: their number, and a hash of their paths, styles and captions (not of the pictures)."""
        listed = repr((self.styles, self.gallery, self._queries)).encode()
        return f"{len(self)} pictures, {hashlib.sha256(listed).hexdigest()[:16]}"

    @property
    def text_index(self) -> int:
        """The index of "text" among `styles`; -2 if it is not among them."""
        return self.styles.index(TEXT) if TEXT in self.styles else -2

    @property
    def is_preloaded(self) -> bool:
        return self._preloaded is not None

    def items_with(self, style: str) -> Tensor:
        """Return the items (int64) that have a query in a style."""
        if style == TEXT:
            return torch.tensor([bool(captions) for captions in self.texts]).nonzero().flatten()
        index = self.styles.index(style)
        return torch.tensor([bool(queries[index]) for queries in self._queries]).nonzero().flatten()

    def load(self, items: Tensor, styles: Tensor, draws: Tensor) -> LoadedPictures:
        """Load one picture of each item in the style of an index, `GALLERY` for the gallery picture."""
        records = []
        for item, style, draw in zip(items.tolist(), styles.tolist(), draws.tolist(), strict=True):
            candidates = [self.gallery[item]] if style == GALLERY else self._queries[item][style]
            records.append(candidates[int(draw * len(candidates))])
        if self._preloaded is None:
            images, readable = self._read(records)
            return LoadedPictures(images, None, readable)
        found = self._preloaded
        rows = torch.tensor([found.position[record] for record in records])
        return LoadedPictures(
            found.images[rows], None if found.style is None else found.style[rows], found.readable[rows]
        )

    def text(self, item: int, draw: float) -> str:
        """Return one of the captions of an item by a draw in [0, 1)."""
        captions = self.texts[item]
        return captions[int(draw * len(captions))]

    def preload(self, method: Method, limit: int = PRELOAD_BYTES) -> None:
        """Read every picture once and compute its style vector, if all pictures fit into `limit` bytes.

        Style vectors do not change in training, so that a small data set needs each of them once and not once an epoch.
        """
        by_style: dict[str, list[Record]] = {}
        for index, style in enumerate(self.styles):
            if style != TEXT:
                by_style[style] = list(dict.fromkeys(r for queries in self._queries for r in queries[index]))
        by_style[self.images.gallery_style] = self.gallery
        records = list(dict.fromkeys(record for found in by_style.values() for record in found))
        if len(records) * 3 * prod(self.resize.size) > limit:
            return
        images, readable = self._read(records)
        position = {record: i for i, record in enumerate(records)}
        parts = []
        for found in by_style.values():
            part = embed_styles(method, images[[position[record] for record in found]])
            if part is not None:
                parts.append(part)
        self._preloaded = _Preloaded(images, readable, torch.cat(parts) if parts else None, position)

    def _read(self, records: Sequence[Record]) -> tuple[Tensor, Tensor]:
        """Read pictures as uint8 [n, 3, H, W], white where unreadable, and return which are readable."""
        pictures = torch.full((len(records), 3, *self.resize.size), 255, dtype=torch.uint8)
        readable = torch.zeros(len(records), dtype=torch.bool)
        skipped: list[Skipped] = []
        for rows, found in read_images(self.images, records, self.resize, skipped):
            pictures[rows] = found
            readable[rows] = True
        self.skipped |= {entry.path: entry.reason for entry in skipped}
        return pictures, readable


class PairSampler:
    """Sampler of batches of different items, each with a query in a random style that it has (paper, Section 3.4).

    The batch of a step depends on the seed and the step only, so a resumed run draws the same batches.

    Args:
        pairs: the training pairs.
        batch_size: pairs a batch; at most the number of items.
        seed: of the order of the items and of their styles.

    Raises:
        ValueError: fewer than two items, or `batch_size` below 2.
    """

    def __init__(self, pairs: TrainingPairs, batch_size: int, seed: int = 0) -> None:
        if batch_size < 2:
            raise ValueError(f"batch_size must be at least 2 (a batch needs negatives), got {batch_size}")
        if len(pairs) < 2:
            raise ValueError(
                f"{pairs.images.name} must have at least 2 gallery pictures with a query, got {len(pairs)}"
            )
        self.batch_size = min(batch_size, len(pairs))
        self.seed = seed
        self._available = torch.zeros(len(pairs), len(pairs.styles))
        for index, style in enumerate(pairs.styles):
            self._available[pairs.items_with(style), index] = 1.0

    @property
    def batches_per_epoch(self) -> int:
        return len(self._available) // self.batch_size

    def batch(self, step: int) -> PairBatch:
        """Return the batch of a step; the first step is 0."""
        items, generator = draw_rows(len(self._available), self.batch_size, self.batches_per_epoch, self.seed, step)
        styles = torch.multinomial(self._available[items], 1, generator=generator)
        return PairBatch(items, styles.flatten(), torch.rand(len(items), generator=generator, dtype=torch.float64))


def _by_key(records: Sequence[Record], key: Callable[[Record], str | None]) -> dict[str, list[Record]]:
    found: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        name = key(record)
        if name is not None:
            found[name].append(record)
    return found


def _check_styles(styles: Sequence[str], gallery_style: str) -> None:
    if gallery_style in styles:
        raise ValueError(f"styles must be query styles, but {gallery_style!r} is the gallery style")
    repeated = next((style for i, style in enumerate(styles) if style in styles[:i]), None)
    if repeated is not None:
        raise ValueError(f"styles must name each style once, got {repeated!r} twice")
