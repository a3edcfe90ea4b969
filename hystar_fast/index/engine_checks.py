"""Checks of arguments that every engine makes, in the same words."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from typing import Any

from hystar_fast.index.engine import LARGEST_BATCH
from hystar_fast.index.stamp import Stamp
from hystar_fast.index.where import FIELDS, Where
from hystar_fast.methods.similarity import COSINE_NAME, Similarity


def first_settings(settings: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the settings of a new index: those that are given, beside those that each has."""
    return {"ids": "path", "sources": {}, **(settings or {})}


def check_batch(keys: Sequence[object]) -> None:
    """Raise ValueError unless these are the keys of at most `LARGEST_BATCH` different items."""
    if len(keys) > LARGEST_BATCH or len({*keys}) < len(keys):
        raise ValueError(f"items must be at most {LARGEST_BATCH} with different ids, got {len(keys)}")


def check_id(item_id: str, held: str) -> None:
    """Raise ValueError if an item has the key of one with another id."""
    if item_id != held:
        raise ValueError(f"id must have a key of its own, got {item_id!r} with that of {held!r}")


def check_held(item_id: str, sha256: object, held: object | None, *, is_same_file: bool) -> None:
    """Raise ValueError if an item is not there, or with another content and `is_same_file`.

    Args:
        item_id: of the item.
        sha256: of its content.
        held: of the content that the index has; None if it has no such item.
        is_same_file: whether the content must be the same.
    """
    if held is None or (is_same_file and held != sha256):
        raise ValueError(f"items must be in the index with this content, got {item_id!r}, which is not or differs")


def check_vectors(keys: Iterable[str], found: Container[str], generation: int) -> None:
    """Raise ValueError unless every key has its vector in a generation."""
    lost = next((key for key in keys if key not in found), None)
    if lost is not None:
        raise ValueError(f"keys must have vectors in generation {generation}, got {lost!r}")


def check_fields(where: Where | None, has_items: Callable[[], bool], has_attribute: Callable[[str], bool]) -> None:
    """Raise ValueError if a filter names an attribute that no item has, and there are items."""
    for condition in () if where is None else where.conditions:
        if condition.field not in FIELDS and has_items() and not has_attribute(condition.field):
            raise ValueError(
                f"where must name one of {', '.join(FIELDS)} or an attribute of some picture, got {condition.field!r}"
            )


def check_has_views(stamps: Mapping[str, Stamp]) -> None:
    """Raise ValueError if a generation would have no view."""
    if not stamps:
        raise ValueError("stamps must hold a view at least, got none")


def check_cosine(stamps: Mapping[str, Stamp], engine: str) -> None:
    """Raise ValueError unless all views are compared by cosine, as an engine needs that has no other search."""
    for view, stamp in stamps.items():
        if stamp.metric != COSINE_NAME:
            raise ValueError(
                f"similarity must be {COSINE_NAME!r} in {engine}, got {stamp.metric!r} of view {view!r}: use a folder"
            )


def check_similarity(made_with: str, similarity: Similarity, index: str) -> None:
    """Raise ValueError unless a search has the similarity with which the vectors of an index were made."""
    if made_with != similarity.name:
        raise ValueError(f"similarity must be {made_with!r}, with which {index} was made, got {similarity.name!r}")


def check_view(view: str, stamps: Mapping[str, Stamp]) -> None:
    """Raise ValueError unless a generation has a view."""
    if view not in stamps:
        raise ValueError(f"view must be one of {', '.join(stamps)}, got {view!r}")


def check_whole(generation: int, lost: int) -> None:
    """Raise ValueError if items have no vector in a generation that is to become live."""
    if lost:
        raise ValueError(
            f"generation must have the vectors of all pictures, got {generation}, where {lost} are missing: "
            "`hystar-fast index reembed` embeds them, `hystar-fast index sync` removes pictures that have gone"
        )


def check_not_live(generation: int, *, is_live: bool) -> None:
    """Raise ValueError if a generation that is to be removed is live."""
    if is_live:
        raise ValueError(f"generation must not be the live one, got {generation}: switch to another first")
