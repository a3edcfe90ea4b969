"""A record beside an adapter of the data it was trained on, so that an evaluation can leave the training pairs out."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hystar_fast.data.hold_out import Shares
from hystar_fast.data.image_set import ImageSet
from hystar_fast.data.open import place_of
from hystar_fast.data.unseen import CategorySplit
from hystar_fast.retrieval.results_json import read_json, write_json

DATA_FILE, EMBEDDED = "data.json", "emoji"


@dataclass(frozen=True)
class DataRecord:
    """Data without splits that an adapter was trained on.

    Attributes:
        place: its folder or file.
        listing: a hash of its records.
        shares: its parts; the adapter was trained on "train" and selected on "val".
        unseen: categories that were left out of both.
        division: the name of their split, as `CategorySplit.of` takes it; empty for those that the data set marks.
    """

    place: str
    listing: str
    shares: Shares
    unseen: tuple[str, ...] = ()
    division: str = ""

    @classmethod
    def of(
        cls, source: str, images: ImageSet, shares: Shares, unseen: Collection[str] = (), division: str = ""
    ) -> DataRecord:
        return cls(_place(source), _listing(images), shares, tuple(sorted(unseen)), division)

    @classmethod
    def of_split(cls, source: str, images: ImageSet, split: CategorySplit) -> DataRecord:
        """Describe data of which the seen categories of a split were trained on."""
        return cls.of(source, images, Shares(0.0, 0.0), split.unseen, split.name)

    def is_of(self, source: str, images: ImageSet) -> bool:
        """Return whether `images` are this data: of the same place, even if some were added, or of the same content."""
        return self.place == _place(source) or self.listing == _listing(images)

    def save(self, adapter: Path) -> None:
        """Write the record into the folder of an adapter."""
        write_json(adapter / DATA_FILE, asdict(self))

    @classmethod
    def read(cls, adapter: Path) -> DataRecord | None:
        """Read the record of an adapter; None if it has none.

        Raises:
            ValueError: the file is damaged.
        """
        path = adapter / DATA_FILE
        if not path.is_file():
            return None
        try:
            found: dict[str, Any] = read_json(path)
            shares = {name: float(value) for name, value in found["shares"].items()}
            unseen = tuple(map(str, found.get("unseen", ())))
            division = str(found.get("division", ""))
            return cls(str(found["place"]), str(found["listing"]), Shares(**shares), unseen, division)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} is damaged: {error!r}; restore it, or train the adapter again") from error


def _place(source: str) -> str:
    """Return the path of a data set; of the embedded drawings, which have none, their name."""
    return EMBEDDED if source.partition(":")[0] == EMBEDDED else os.path.realpath(place_of(source))


def _listing(images: ImageSet) -> str:
    digest = hashlib.sha256()
    for record in sorted((record.path, record.style, record.instance or "") for record in images.records):
        digest.update(os.fsencode("\0".join(record)) + b"\n")
    return digest.hexdigest()
