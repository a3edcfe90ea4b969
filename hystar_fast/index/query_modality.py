"""How the vector of a query picture is moved from its style to that of the gallery."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import Tensor

from hystar_fast.methods.interface import Method


def query_move(method: Method, modality: str) -> Callable[[Tensor], Tensor]:
    """Return what moves unit vectors [..., D] of query pictures of a style to the gallery's.

    Args:
        method: that made the index.
        modality: a style, such as "sketch", or a row of an evaluation, such as "sketch [mean shift]".

    Raises:
        ValueError: the method has no such conversion, or knows no such style.
    """
    style, _, way = modality.partition(" [")
    ways = method.conversions()
    if not ways:
        raise ValueError(
            f"modality must be left out for an index of this {method.name!r}, whose adapter has no means of styles: "
            "`hystar-fast mean-shift` writes one that has"
        )
    name = way.removesuffix("]") or next(iter(ways))
    if name not in ways:
        raise ValueError(f"modality must name one of {', '.join(ways)} in brackets, got {modality!r}")
    known = [*ways[name].vectors]
    if style not in known:
        raise ValueError(f"modality must be one of {', '.join(known)}, got {style!r}")
    return partial(ways[name], source=style, target=known[0])
