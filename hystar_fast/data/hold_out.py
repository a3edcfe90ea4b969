"""Hold out part of a data set by a hash of its names: the same part on every machine and for every seed."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, replace

from hystar_fast.data.image_set import ImageSet, Record

PARTS = ("train", "val", "test")
_TEST, _VALIDATION = 0.2, 0.1  # of the pairs; the rest is for training


def hash_fraction(name: str, purpose: str = "") -> float:
    """Return a number in [0, 1) that depends on the name alone, so that shares need no file.

    Nested shares need different purposes: a name below 0.2 for one purpose is always below 0.2 for that purpose.
    """
    digest = hashlib.blake2b(os.fsencode(name), digest_size=8, person=purpose.encode())
    return int.from_bytes(digest.digest(), "big") / 2**64


def hold_out(images: ImageSet, share: float) -> tuple[ImageSet, ImageSet]:
    """Split a data set in two, the second with about `share` of the instances (of the pictures if it has none).

    A picture that belongs to several pairs, and would be in both parts, is in the second one only.

    Raises:
        ValueError: `share` is not between 0 and 1.

    Example:
        >>> from hystar_fast.data.open import open_images
        >>> train, held_out = hold_out(open_images("emoji", "val"), 0.2)
        >>> {r.instance for r in train.records} & {r.instance for r in held_out.records}
        set()
    """
    if not 0 < share < 1:
        raise ValueError(f"share must be between 0 and 1, got {share}")
    second = tuple(record for record in images.records if _place(record) < share)
    taken = {record.path for record in second}
    first = tuple(record for record in images.records if record.path not in taken)
    return replace(images, records=first), replace(images, records=second)


@dataclass(frozen=True)
class Shares:
    """The parts of a data set without splits, by a hash of the names of its instances.

    Attributes:
        test_below: names with a hash below it are the test part.
        validation_below: names from there to below it are the validation part; the others are for training.
    """

    test_below: float
    validation_below: float

    @classmethod
    def of(cls, images: ImageSet) -> Shares:
        """Return shares of 20 % for testing and 10 % for validation, at least two pairs each (one of fewer than eight).

        Raises:
            ValueError: fewer than four pairs.
        """
        answered = {record.instance for record in images.gallery}
        queried = {r.instance for r in images.records if r.style != images.gallery_style}
        names = {name for name in answered & queried if name is not None} or {r.path for r in images.records}
        places = sorted(map(hash_fraction, names))
        if len(places) < 4:
            raise ValueError(
                f"{images.name} must have at least 4 pairs to hold out some for validation and test, got {len(places)}"
            )
        least = 2 if len(places) >= 8 else 1
        test = max(least, round(_TEST * len(places)))
        validation = test + max(least, round(_VALIDATION * len(places)))
        return cls(*((places[count - 1] + places[count]) / 2 for count in (test, validation)))

    def part(self, images: ImageSet, split: str) -> ImageSet:
        """Return "train", "val" or "test"; a picture of several pairs is in the last of its parts."""
        taken: set[str] = set()
        for name, below, above in (("test", 0.0, self.test_below), ("val", self.test_below, self.validation_below)):
            part = tuple(r for r in images.records if below <= _place(r) < above and r.path not in taken)
            if name == split:
                return replace(images, records=part)
            taken |= {record.path for record in part}
        rest = (r for r in images.records if _place(r) >= self.validation_below and r.path not in taken)
        return replace(images, records=tuple(rest))


def _place(record: Record) -> float:
    return hash_fraction(record.instance or record.path)
