"""Hold out part of a data set by a hash of its names: the same part on every machine and for every seed."""

from __future__ import annotations

import hashlib
import os
from dataclasses import replace

from hystar_fast.data.image_set import ImageSet


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
    second = tuple(record for record in images.records if hash_fraction(record.instance or record.path) < share)
    taken = {record.path for record in second}
    first = tuple(record for record in images.records if record.path not in taken)
    return replace(images, records=first), replace(images, records=second)
