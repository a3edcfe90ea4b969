"""Captioned pictures: every picture of any style is an item of its own, with the caption of its class."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch

from hystar_fast.data.hold_out import hash_fraction
from hystar_fast.data.image_set import ImageSet, Record, read_by_path
from hystar_fast.data.images import Resize
from hystar_fast.methods.step_trained import Batching, CaptionedBatch
from hystar_fast.train.draws import draw_rows

_LONE = 0.2  # of the classes, with one side alone


class CaptionedPictures:
    """Pictures with the captions of their classes, in batches; each comes once an epoch.

    A last, smaller batch is kept if it has two pictures. The pictures of a step depend on the seed and the step alone.
    One that cannot be read is listed in `skipped` and left out of the loss.

    Args:
        images: the training part.
        styles: query styles; by default every style but the gallery's.
        resize: of the method that trains.
        batching: what captions are made of, the order, and classes that lack a side.
        batch_size: pictures a batch; at most their number.
        seed: of the order, and of which classes lack which side.

    Attributes:
        styles: the gallery's, then the query styles; a kind is a position among them.
        categories: the captions, sorted; a label is a position among them.
        items: the pictures.
        skipped: path -> reason.

    Raises:
        ValueError: an unknown style or the gallery's, or fewer than two captions or pictures.
    """

    def __init__(
        self,
        images: ImageSet,
        styles: Sequence[str],
        resize: Resize,
        batching: Batching,
        *,
        batch_size: int,
        seed: int = 0,
    ) -> None:
        queries = tuple(styles) or images.query_styles
        if images.gallery_style in queries:
            raise ValueError(f"styles must be query styles, but {images.gallery_style!r} is the gallery style")
        self.styles = (images.gallery_style, *queries)
        self.images, self.resize, self.batching, self.seed = images, resize, batching, seed
        listed = [(record, self._name(record)) for style in self.styles for record in images.of_style(style)]
        named = [(record, name) for record, name in listed if name is not None and self._takes_part(record, name)]
        self.items = [record for record, _ in named]
        self.categories = tuple(sorted({batching.caption(name) for _, name in named}))
        if len(self.categories) < 2 or len(self.items) < 2:
            raise ValueError(
                f"{images.name} must have at least 2 {batching.names} with a picture to train on, got "
                f"{len(self.categories)} with {len(self.items)} pictures"
            )
        number = {caption: label for label, caption in enumerate(self.categories)}
        kind = {style: i for i, style in enumerate(self.styles)}
        self._labels = torch.tensor([number[batching.caption(name)] for _, name in named])
        self._kinds = torch.tensor([kind[record.style] for record in self.items])
        if batch_size < 2:
            raise ValueError(f"batch_size must be at least 2, got {batch_size}")
        self.batch_size = min(batch_size, len(self.items))
        self.skipped = {entry.path: entry.reason for entry in images.skipped}

    @property
    def modalities(self) -> tuple[str, ...]:
        """The styles, by the numbers of their kinds."""
        return self.styles

    @property
    def training(self) -> ImageSet:
        """The data set with the pictures that train alone."""
        kept = {record.path for record in self.items}
        records = tuple(record for record in self.images.records if record.path in kept)
        return ImageSet(**{**vars(self.images), "records": records})

    @property
    def batches_per_epoch(self) -> int:
        whole, rest = divmod(len(self.items), self.batch_size)
        return whole + (rest >= 2)

    def identity(self) -> str:
        """Describe the pictures: their number, and a hash of the paths and captions (not of the pictures)."""
        listed = repr((self.items, self._labels.tolist(), self.categories, self.batching)).encode()
        return f"{len(self.items)} pictures, {hashlib.sha256(listed).hexdigest()[:16]}"

    def check_share(self, processes: int) -> None:
        """Raise ValueError unless every batch divides evenly over so many processes."""
        rest = len(self.items) % self.batch_size
        for size in (self.batch_size, rest if rest >= 2 else 0):
            if size % processes:
                raise ValueError(
                    f"optim.batch_size must give batches that divide evenly over {processes} processes, got "
                    f"{self.batch_size} for {len(self.items)} pictures, with a batch of {size}"
                )

    def draw(self, step: int) -> list[int]:
        """Return the rows of the pictures of a step, from 0."""
        if self.batching.order == "listed":
            start = step % self.batches_per_epoch * self.batch_size
            return [*range(start, min(start + self.batch_size, len(self.items)))]
        rows, _ = draw_rows(len(self.items), self.batch_size, self.batches_per_epoch, self.seed, step)
        return rows.tolist()

    def load(self, step: int, processes: tuple[int, int] = (0, 1)) -> CaptionedBatch:
        """Return the batch of a step, with the pictures of one process.

        Args:
            step: from 0.
            processes: the rank of this one, and how many there are.
        """
        rows = self.draw(step)
        rank, size = processes
        part = len(rows) // size
        records = [self.items[row] for row in rows[rank * part : (rank + 1) * part]]
        read = read_by_path(self.images, records, self.resize, self.skipped)
        black = torch.zeros(3, *self.resize.size, dtype=torch.uint8)
        usable = torch.tensor([record.path in read for record in records])
        pictures = torch.stack([read.get(record.path, black) for record in records])
        return CaptionedBatch(pictures, usable, self._labels[rows], self._kinds[rows])

    def _name(self, record: Record) -> str | None:
        return record.caption if self.batching.names == "captions" else record.category

    def _takes_part(self, record: Record, name: str) -> bool:
        """Tell whether a picture is of a side that its class has; the class is that of the caption."""
        how, in_gallery = self.batching.unpaired, record.style == self.styles[0]
        if how == "none":
            return True
        place = hash_fraction(name, f"unpaired {self.seed}"[:16])
        if how == "disjoint":
            return in_gallery == (place < 0.5)
        return place >= _LONE or in_gallery == (how == "gallery")
