"""Training on names: the class names of a data set, or of a file, in batches; no picture is read."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hystar_fast.data.image_set import ImageSet
from hystar_fast.data.images import Resize
from hystar_fast.data.open import open_images
from hystar_fast.data.text_files import read_lines
from hystar_fast.data.unseen import CategorySplit
from hystar_fast.methods.interface import Method
from hystar_fast.methods.step_trained import Batching, NameBatch, StepTrained
from hystar_fast.train.data_record import DataRecord
from hystar_fast.train.draws import draw_rows
from hystar_fast.train.settings import DataSettings
from hystar_fast.train.validation import Score

TEXTS_NAME = "mAP of texts"
_FILE = "file:"


class NameBatches:
    """Class names in batches, each name once an epoch in a random order that follows from the seed and the step.

    Args:
        names: at least two, all different.
        batch_size: names a batch; at most their number.
        seed: of the order.
    """

    def __init__(self, names: tuple[str, ...], batch_size: int, seed: int) -> None:
        self.categories, self.seed = names, seed
        self.batch_size = min(batch_size, len(names))
        self.skipped: dict[str, str] = {}

    @property
    def batches_per_epoch(self) -> int:
        return -(-len(self.categories) // self.batch_size)

    def identity(self) -> str:
        """Describe the names: their number and a hash."""
        return f"{len(self.categories)} names, {hashlib.sha256(repr(self.categories).encode()).hexdigest()[:16]}"

    def load(self, step: int) -> NameBatch:
        """Return the batch of a step, from 0."""
        rows, _ = draw_rows(len(self.categories), self.batch_size, self.batches_per_epoch, self.seed, step)
        return NameBatch(rows)


@dataclass(frozen=True)
class NameData:
    """The names of a run.

    Attributes:
        names: of the classes that train.
        training: the pictures of these classes, listed and never read.
        batching: how batches are made.
        score: the method's own, without pictures.
        notes: lines that say what was read.
        record: of the categories that take no part; None where all do.
        unseen: these categories.
        metric: what `score` returns.
        styles: none.
    """

    names: tuple[str, ...]
    training: ImageSet
    batching: Batching
    score: Callable[[Method], Score] | None
    notes: tuple[str, ...]
    record: DataRecord | None
    unseen: frozenset[str] = frozenset()
    metric: str = TEXTS_NAME
    styles: tuple[str, ...] = ()

    def batches(self, resize: Resize, batch_size: int, seed: int) -> NameBatches:
        """Return the training batches; no picture is resized."""
        return NameBatches(self.names, batch_size, seed)


def open_names(data: DataSettings, batching: Batching, *, selects: bool) -> NameData:
    """Open the class names of a run.

    Args:
        data: the settings; ``unseen`` names the categories whose names take no part.
        batching: of the method; its `names` says where they come from.
        selects: whether the method selects its model by a score of its own.

    Raises:
        ValueError: no such data, fewer than two names, or a setting of pictures, of which none is read.
    """
    for key, found, wanted in (("styles", data.styles, []), ("validation", data.validation, "none")):
        if found != wanted:
            raise ValueError(f"data.{key} must be {wanted!r} for a method that trains on names, got {found!r}")
    whole = open_images(data.source, "train", gallery_style=data.gallery_style or None)
    unseen = whole.unseen_categories
    division = CategorySplit.of(data.unseen, whole) if data.unseen else CategorySplit("", unseen)
    seen = division.training(whole)
    if batching.names.startswith(_FILE):
        path = Path(batching.names.removeprefix(_FILE))
        if not path.is_file():
            raise ValueError(f"tki.labels must name a file of names, got {batching.names!r}")
        found = [line.strip() for _, line in read_lines(path)]
    elif batching.names == "captions":
        found = [record.captions[0] for record in seen.gallery if record.captions]
    else:
        found = [str(record.category) for record in seen.records if record.category is not None]
    cleaned = dict.fromkeys(" ".join(name.replace("_", " ").split()) for name in found)
    names = tuple(sorted(name for name in cleaned if name))[: data.limit or None]
    if len(names) < 2:
        raise ValueError(f"data.source must have at least 2 names in {batching.names!r} to train on, got {len(names)}")
    left_out = f"; {len(division.unseen)} unseen categories take no part" if division.unseen else ""
    record = None
    if division.unseen:
        record = DataRecord.of_split(data.source, whole, division)
    return NameData(
        names,
        seen,
        batching,
        _own_score if selects else None,
        (f"read {len(names)} names ({batching.names}) of {whole.name}{left_out}; no picture is read",),
        record,
        division.unseen,
    )


def _own_score(method: Method) -> Score:
    inner: Any = getattr(method, "method", method)
    if not isinstance(inner, StepTrained):
        raise TypeError(f"method must make its own steps to score itself, got {method.name!r}")
    return inner.own_score()
