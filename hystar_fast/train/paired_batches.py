"""Batches of pairs of a gallery picture and a query: a text, or a picture of another style."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from hystar_fast.data.image_set import ImageSet, Record, read_by_path
from hystar_fast.data.images import Resize
from hystar_fast.methods.interface import GALLERY, QUERY
from hystar_fast.methods.step_trained import Batching, PairedBatch, StepTrained
from hystar_fast.train.draws import draw_rows

_AT_ONCE = 128  # pictures or texts that a method stores at a time
_ASPECT = 4 / 3  # largest ratio of the sides of a crop, as torchvision's RandomResizedCrop has it


class PairedBatches:
    """Pairs of a query and a gallery picture, each query once an epoch in a random order.

    A last, smaller batch is kept if it has two pairs. The pairs of a step and their crops depend on the seed and the
    step alone. A pair with a picture that cannot be read is left out of its batch; `skipped` lists them.

    Args:
        images: the training part.
        styles: query styles; without texts every style but the gallery's by default.
        resize: of the method that trains.
        batching: which pairs, see `Batching`.
        batch_size: pairs a batch; at most the number of queries.
        seed: of the order, the pairs and the crops.

    Attributes:
        categories: the names that have a query and a gallery picture, sorted; a label is a position among them.
        modalities: the gallery's style and the query styles; a kind is a position among them.
        queries: the query pictures, or the gallery pictures with a caption each.
        gallery: the gallery pictures of these pairs.
        skipped: path -> reason.

    Raises:
        ValueError: an unknown style or the gallery's, fewer than two categories or pairs.
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
        self.images, self.resize, self.batching, self.seed = images, resize, batching, seed
        self.styles = () if batching.texts else tuple(styles) or images.query_styles
        self.modalities = (images.gallery_style, *self.styles)
        if images.gallery_style in self.styles:
            raise ValueError(f"styles must be query styles, but {images.gallery_style!r} is the gallery style")
        gallery = [record for record in images.gallery if record.category is not None]
        if batching.texts:
            queries = [text for record in gallery for text in record.with_each_caption()]
        else:
            queries = [r for style in self.styles for r in images.of_style(style) if r.category is not None]
        keys = [self._key(record) for record in gallery]
        partners: dict[str, list[int]] = {}
        for row, key in enumerate(keys):
            if key is not None:
                partners.setdefault(key, []).append(row)
        self.gallery = gallery
        self.queries = [record for record in queries if self._key(record) in partners]
        self._partners = [partners[str(self._key(record))] for record in self.queries]
        self.categories = tuple(sorted({str(record.category) for record in self.queries}))
        if len(self.categories) < 2 or len(self.queries) < 2:
            raise ValueError(
                f"{images.name} must have at least 2 categories with a query and its gallery picture to train on, got "
                f"{len(self.categories)} with {len(self.queries)} pairs"
            )
        number = {name: label for label, name in enumerate(self.categories)}
        self._labels = torch.tensor([number[str(record.category)] for record in self.queries])
        kind = {style: i for i, style in enumerate(self.modalities)}
        self._kinds = torch.tensor([kind[record.style] for record in self.queries])
        first: dict[object, int] = {}
        owners = [record.path if record.instance is None else ("instance", record.instance) for record in gallery]
        self._instances = torch.tensor([first.setdefault(owner, len(first)) for owner in owners])
        if batch_size < 2:
            raise ValueError(f"batch_size must be at least 2, got {batch_size}")
        self.batch_size = min(batch_size, len(self.queries))
        self.skipped = {entry.path: entry.reason for entry in images.skipped}
        self.is_stored = False

    @property
    def training(self) -> ImageSet:
        """The data set with the pictures that train."""
        return self.images

    @property
    def is_fixed(self) -> bool:
        """Tell whether a method computes the features of pictures once, as they never change."""
        return self.batching.crop >= 1 and self.batching.stored

    @property
    def batches_per_epoch(self) -> int:
        whole, rest = divmod(len(self.queries), self.batch_size)
        return whole + (rest >= 2)

    def identity(self) -> str:
        """Describe the pairs: their number, and a hash of the paths, texts and categories (not of the pictures)."""
        listed = repr((self.styles, self.queries, self.gallery, self.batching)).encode()
        return f"{len(self.queries)} pairs, {hashlib.sha256(listed).hexdigest()[:16]}"

    def draw(self, step: int) -> tuple[list[int], list[int]]:
        """Return the rows of the queries and of the gallery pictures of a step, from 0."""
        drawn, generator = draw_rows(len(self.queries), self.batch_size, self.batches_per_epoch, self.seed, step)
        rows, draws = drawn.tolist(), torch.rand(len(drawn), generator=generator, dtype=torch.float64).tolist()
        found = [self._partners[row][int(x * len(self._partners[row]))] for row, x in zip(rows, draws, strict=True)]
        return rows, found

    def store(self, method: StepTrained) -> None:
        """Let a method compute what it needs of all pictures and texts, where they never change."""
        if not self.is_fixed:
            return
        method.store(GALLERY, self._all(self.gallery))
        method.store(QUERY, self._texts() if self.batching.texts else self._all(self.queries))
        self.is_stored = True

    def load(self, step: int) -> PairedBatch:
        """Return the batch of a step.

        Raises:
            ValueError: fewer than two of its pairs can be read.
        """
        asked, answers = self.draw(step)
        pairs = [(self.queries[query], self.gallery[answer]) for query, answer in zip(asked, answers, strict=True)]
        read = {} if self.is_stored else self._read([record for pair in pairs for record in pair])
        kept = [i for i, pair in enumerate(pairs) if all(record.path not in self.skipped for record in pair)]
        if len(kept) < 2:
            raise ValueError(f"a batch must have 2 pairs that can be read, got {len(kept)} of {len(pairs)}")
        query_rows, gallery_rows = (torch.tensor([rows[i] for i in kept]) for rows in (asked, answers))
        facts = {
            "gallery_rows": gallery_rows,
            "query_rows": query_rows,
            "labels": self._labels[query_rows],
            "instances": self._instances[gallery_rows],
            "kinds": self._kinds[query_rows],
        }
        if self.is_stored:
            return PairedBatch(None, None, **facts)
        generator = torch.Generator().manual_seed(self.seed * 7_368_787 + step)
        shown = self._cropped(torch.stack([read[pairs[i][1].path] for i in kept]), generator)
        if self.batching.texts:
            return PairedBatch(shown, [pairs[i][0].captions[0] for i in kept], **facts)
        drawn = self._cropped(torch.stack([read[pairs[i][0].path] for i in kept]), generator)
        return PairedBatch(shown, drawn, **facts)

    def _key(self, record: Record) -> str | None:
        return record.instance if self.batching.by == "instance" else record.category

    def _cropped(self, pictures: Tensor, generator: torch.Generator) -> Tensor:
        """Crop uint8 [b, 3, H, W] at random places, to a share of the area and an aspect that are drawn for each."""
        if self.batching.crop >= 1:
            return pictures
        height, width = pictures.shape[-2:]
        draws = torch.rand(len(pictures), 4, generator=generator)
        found = []
        for picture, (area, aspect, down, right) in zip(pictures, draws.tolist(), strict=True):
            share = self.batching.crop + (1 - self.batching.crop) * area
            ratio = math.exp((2 * aspect - 1) * math.log(_ASPECT))
            h, w = (
                min(side, max(1, round(side * math.sqrt(share * by))))
                for side, by in ((height, 1 / ratio), (width, ratio))
            )
            top, left = int(down * (height - h + 1)), int(right * (width - w + 1))
            part = picture[None, :, top : top + h, left : left + w].float()
            found.append(F.interpolate(part, (height, width), mode="bilinear", antialias=True, align_corners=False))
        return torch.cat(found).round().clamp(0, 255).to(torch.uint8)

    def _texts(self) -> Iterator[list[str]]:
        for start in range(0, len(self.queries), _AT_ONCE):
            yield [record.captions[0] for record in self.queries[start : start + _AT_ONCE]]

    def _all(self, records: Sequence[Record]) -> Iterator[Tensor]:
        """Yield every picture in order; one that cannot be read is black, and its pairs are left out."""
        for start in range(0, len(records), _AT_ONCE):
            part = records[start : start + _AT_ONCE]
            read = self._read(part)
            black = torch.zeros(3, *self.resize.size, dtype=torch.uint8)
            yield torch.stack([read.get(record.path, black) for record in part])

    def _read(self, records: Sequence[Record]) -> dict[str, Tensor]:
        return read_by_path(self.images, records, self.resize, self.skipped)
