"""A wrong name in an error, with the right one that is nearest."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def with_nearest(value: object, choices: Iterable[object], *, prefix: str = "") -> str:
    """Return a wrong value as an error shows it, with the nearest of the right ones where one is near.

    Args:
        value: what was given.
        choices: the right values.
        prefix: stands before the right one, where names are given with it.

    >>> with_nearest("imge", ["image", "text"])
    "'imge'; did you mean image?"
    >>> with_nearest(7, [49, 196])
    '7'
    """
    near = difflib.get_close_matches(str(value), [*map(str, choices)], 1)
    return f"{value!r}; did you mean {prefix}{near[0]}?" if near else repr(value)
