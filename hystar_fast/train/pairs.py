"""Batches of training pairs: a drawing or text in one of the query styles, and the gallery drawing of its concept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from hystar_fast.methods.interface import Method
from hystar_fast.retrieval.embed import embed_styles
from hystar_fast.retrieval.protocol import GALLERY_STYLE, StyledConcepts

GALLERY = -1  # the column of the gallery style


class Concepts(Protocol):
    """Concepts of which some can ask in each style."""

    def __len__(self) -> int: ...

    def rows(self, style: str) -> Tensor:
        """int64: the concepts that can ask in `style`."""


def check_styles(styles: Sequence[str], gallery_style: str) -> None:
    """ValueError if the style that answers is among the query styles, or one of them stands there twice."""
    if gallery_style in styles:
        raise ValueError(f"styles must be query styles, but {gallery_style!r} is the style that answers")
    twice = next((style for i, style in enumerate(styles) if style in styles[:i]), None)
    if twice is not None:
        raise ValueError(f"styles must name each style once, got {twice!r} more often")


@dataclass(frozen=True)
class PairBatch:
    """One batch.

    Attributes:
        concepts: int64 [B], the concept of each pair.
        styles: int64 [B], the index into the query styles of each query.
        draws: [B] in [0, 1): which picture asks where a concept has several in a style.
    """

    concepts: Tensor
    styles: Tensor
    draws: Tensor


@dataclass(frozen=True)
class Loaded:
    """Pictures of a batch.

    Attributes:
        images: uint8 or floating point [n, 3, H, W].
        styles: the style vectors [n, d] of the pictures, or None where nothing has computed them yet.
        readable: bool [n], False where a picture could not be read and a blank one stands.
    """

    images: Tensor
    styles: Tensor | None
    readable: Tensor


class Pairs(Concepts, Protocol):
    """Training pairs, wherever they are stored.

    Attributes:
        texts: a caption a concept.
        text_column: the index of "text" among the query styles, or -2.
        labels: int64 [n]; targets with the label of a query's concept are not among its negatives. None: all differ.
        reads_files: whether loading takes so long that the next batch should be read while a step runs.
        skipped: pictures that could not be read so far, and why.
    """

    reads_files: bool
    skipped: dict[str, str]
    texts: list[str]
    text_column: int
    labels: Tensor | None

    def load(self, concepts: Tensor, columns: Tensor, draws: Tensor) -> Loaded:
        """The pictures of concepts in the styles of `columns`, `GALLERY` being the gallery's."""


class PairSampler:
    """Draws batches of distinct concepts, each asked in one random style it is drawn in (Section 3.4 of the paper).

    The batch of a step depends on the seed and the step alone, so a run that is resumed sees what it would have seen.

    Args:
        concepts: the training concepts.
        styles: query styles; "text" asks with the concept's name.
        batch_size: pairs a batch; capped by the number of concepts.
        seed: seeds both the order of the concepts and their styles.

    Raises:
        ValueError: no style or no concept, an unknown style, `batch_size` below 2, or a concept without any query.
    """

    def __init__(self, concepts: Concepts, styles: Sequence[str], batch_size: int, seed: int = 0) -> None:
        if batch_size < 2:
            raise ValueError(f"batch_size must be at least 2 (a batch needs negatives), got {batch_size}")
        if not styles or len(concepts) < 2:
            raise ValueError(f"needs 1 of styles and 2 concepts at least, got {len(styles)} and {len(concepts)}")
        self.styles = tuple(styles)
        self.batch_size = min(batch_size, len(concepts))
        self.seed = seed
        self._available = torch.zeros(len(concepts), len(styles))
        for column, style in enumerate(styles):
            self._available[concepts.rows(style), column] = 1.0
        if not bool(self._available.any(dim=1).all()):
            raise ValueError(f"every concept needs a query in one of styles {self.styles}, but some have none")

    @property
    def batches_per_epoch(self) -> int:
        return len(self._available) // self.batch_size

    def batch(self, step: int) -> PairBatch:
        """The batch of a step, counted from 0."""
        epoch, position = divmod(step, self.batches_per_epoch)
        order = torch.randperm(len(self._available), generator=self._generator(2 * epoch))
        chosen = order[position * self.batch_size : (position + 1) * self.batch_size]
        generator = self._generator(2 * step + 1)
        styles = torch.multinomial(self._available[chosen], 1, generator=generator)
        return PairBatch(chosen, styles.flatten(), torch.rand(len(chosen), generator=generator, dtype=torch.float64))

    def _generator(self, stream: int) -> torch.Generator:
        return torch.Generator().manual_seed(self.seed * 1_000_003 + stream)


@dataclass
class PairImages:
    """The drawings of a training set as one tensor, with the style vector of each (computed once: it never changes).

    Attributes:
        images: uint8 [styles, n, 3, H, W], the gallery style last.
        styles: float [styles, n, d], or None for a method without style.
        texts: n captions.
        text_column: the index of "text" among the styles, or -2.
        concepts: what they are drawings of.
    """

    images: Tensor
    styles: Tensor | None
    texts: list[str] = field(repr=False)
    text_column: int
    concepts: StyledConcepts = field(repr=False)
    labels: Tensor | None = None
    reads_files: bool = False
    skipped: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, method: Method, concepts: StyledConcepts, styles: tuple[str, ...]) -> PairImages:
        # The column of "text" is never drawn from: it stands there so that columns and styles have one numbering.
        drawn = [GALLERY_STYLE if style == "text" else style for style in (*styles, GALLERY_STYLE)]
        vectors = {style: embed_styles(method, concepts.images[style]) for style in dict.fromkeys(drawn)}
        found = [vector for style in drawn if (vector := vectors[style]) is not None]
        return cls(
            images=torch.stack([concepts.images[style] for style in drawn]),
            styles=torch.stack(found) if len(found) == len(drawn) else None,
            texts=concepts.texts,
            text_column=styles.index("text") if "text" in styles else -2,
            concepts=concepts,
        )

    def __len__(self) -> int:
        return len(self.concepts)

    def rows(self, style: str) -> Tensor:
        return self.concepts.rows(style)

    def load(self, concepts: Tensor, columns: Tensor, draws: Tensor) -> Loaded:
        style = None if self.styles is None else self.styles[columns, concepts]
        return Loaded(self.images[columns, concepts], style, torch.ones(len(concepts), dtype=torch.bool))
