"""Batches by category: each query once an epoch, with a gallery picture of its category that is drawn at random."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from hystar_fast.data.image_set import ImageSet, Record, read_by_path
from hystar_fast.data.images import Resize
from hystar_fast.methods.step_trained import CategoryBatch
from hystar_fast.train.draws import draw_rows


class CategoryPairs:
    """Pairs of a query and a gallery picture of the same category.

    An epoch is one pass over the queries in a random order; what is left of it after the last whole batch is dropped.
    The pairs of a step, and which of its pictures are mirrored, depend on the seed and the step alone. A gallery
    picture that cannot be read is replaced by another of its category, and a query (or the last of a category's gallery
    pictures) by another pair; `skipped` lists them.

    Args:
        images: the training part; the instances of its records are not used.
        styles: query styles; by default every style but the gallery's.
        resize: of the method that trains.
        batch_size: pairs a batch; at most the number of queries.
        seed: of the order, the pairs and the mirroring.
        flip: the chance that a picture is mirrored, each for itself.

    Attributes:
        categories: the names that have a query and a gallery picture, sorted; a label is a position among them.
        queries: the pictures of the query styles in these categories.
        skipped: path -> reason.

    Raises:
        ValueError: an unknown style, the gallery style, fewer than two such categories, or a batch of no pair.
    """

    def __init__(
        self,
        images: ImageSet,
        styles: Sequence[str],
        resize: Resize,
        *,
        batch_size: int,
        seed: int = 0,
        flip: float = 0.0,
    ) -> None:
        self.styles = tuple(styles) or images.query_styles
        if images.gallery_style in self.styles:
            raise ValueError(f"styles must be query styles, but {images.gallery_style!r} is the gallery style")
        queries = [record for style in self.styles for record in images.of_style(style)]
        gallery = images.of_style(images.gallery_style)
        named = {r.category for r in queries} & {r.category for r in gallery}
        self.categories = tuple(sorted(name for name in named if name is not None))
        if len(self.categories) < 2:
            raise ValueError(
                f"{images.name} must have at least 2 categories with a query and a gallery picture to train on, got "
                f"{len(self.categories)}"
            )
        number = {name: i for i, name in enumerate(self.categories)}
        self.queries = [record for record in queries if record.category in number]
        self._labels = [number[str(record.category)] for record in self.queries]
        self._gallery: list[list[Record]] = [[] for _ in number]
        for record in gallery:
            if record.category in number:
                self._gallery[number[str(record.category)]].append(record)
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        self.batch_size = min(batch_size, len(self.queries))
        self.images, self.resize, self.seed, self.flip = images, resize, seed, flip
        self.skipped = {entry.path: entry.reason for entry in images.skipped}

    @property
    def batches_per_epoch(self) -> int:
        return len(self.queries) // self.batch_size

    def identity(self) -> str:
        """Describe the pairs: their number, and a hash of the paths and categories (not of the pictures)."""
        listed = repr((self.styles, self.queries, self._gallery, self.flip)).encode()
        return f"{len(self.queries)} queries, {hashlib.sha256(listed).hexdigest()[:16]}"

    def draw(self, step: int) -> list[tuple[Record, Record]]:
        """Return the query and the gallery picture of each pair of a step, from 0."""
        rows, generator = draw_rows(len(self.queries), self.batch_size, self.batches_per_epoch, self.seed, step)
        draws = torch.rand(len(rows), generator=generator, dtype=torch.float64)
        found = []
        for item, draw in zip(rows.tolist(), draws.tolist(), strict=True):
            candidates = self._gallery[self._labels[item]]
            found.append((self.queries[item], candidates[int(draw * len(candidates))]))
        return found

    def load(self, step: int) -> CategoryBatch:
        """Return the batch of a step.

        Raises:
            ValueError: no pair can be read.
        """
        pairs = self.draw(step)
        read = self._read([record for pair in pairs for record in pair])
        generator = torch.Generator().manual_seed(self.seed * 7_368_787 + step)
        mirrored = torch.rand(len(pairs), 2, generator=generator) < self.flip
        rows: list[tuple[Record, Tensor, Tensor]] = []
        for pair in pairs:
            query, target = (read.get(record.path) for record in pair)
            if query is None or target is None:
                rows.append(self._replacement(pair, query, generator))
            else:
                rows.append((pair[0], query, target))
        label = {name: i for i, name in enumerate(self.categories)}
        pictures = [torch.stack(side) for side in ([row[1] for row in rows], [row[2] for row in rows])]
        for side in (0, 1):
            chosen = mirrored[:, side]
            pictures[side][chosen] = pictures[side][chosen].flip(-1)
        labels = torch.tensor([label[str(row[0].category)] for row in rows])
        return CategoryBatch(pictures[0], pictures[1], labels)

    def _replacement(
        self, pair: tuple[Record, Record], query: Tensor | None, generator: torch.Generator
    ) -> tuple[Record, Tensor, Tensor]:
        """Return the first pair that can be read: of the same query if that can, then of others in a random order."""
        for record in (
            self._others(pair[0], generator) if query is None else (pair[0], *self._others(pair[0], generator))
        ):
            picture = query if record is pair[0] else self._read([record]).get(record.path)
            if picture is None:
                continue
            candidates = self._gallery[self.categories.index(str(record.category))]
            for place in torch.randperm(len(candidates), generator=generator).tolist():
                target = self._read([candidates[place]]).get(candidates[place].path)
                if target is not None:
                    return record, picture, target
        raise ValueError(f"{self.images.name} must have a query and a gallery picture that can be read, got none")

    def _others(self, record: Record, generator: torch.Generator) -> Iterator[Record]:
        for item in torch.randperm(len(self.queries), generator=generator).tolist():
            if self.queries[item] is not record:
                yield self.queries[item]

    def _read(self, records: Sequence[Record]) -> dict[str, Tensor]:
        return read_by_path(self.images, records, self.resize, self.skipped)
