"""Folders of styles in ``train/`` and ``val/`` with different categories, as archives for zero-shot retrieval have."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from hystar_fast.data.flat_folders import GALLERY_NAMES
from hystar_fast.data.folders import load_folders
from hystar_fast.data.image_set import FolderReader, ImageSet, layout_error

LAYOUT = "train/<style>/<category>/<picture>, and the same in val/ or test/, such as train/sketch/cat/1.png"
_TRAINING, _VALIDATION, _TEST = "train", "val", "test"


def is_split(root: Path) -> bool:
    """Return whether a folder holds ``train/`` and ``val/`` or ``test/``, each with folders of styles."""
    return _has_styles(root / _TRAINING) and any(_has_styles(root / name) for name in (_VALIDATION, _TEST))


def load_split_folders(root: Path, split: str = _TEST, gallery_style: str | None = None) -> ImageSet:
    """List one part of ``<split>/<style>/<category>/<picture>``, by category: pictures of equal name are no pairs.

    ``val/`` is the test part where there is no ``test/``: it holds the categories that are never trained on, so it is
    refused as a validation split.

    Args:
        root: the folder, see `LAYOUT`.
        split: "train", "val" or "test".
        gallery_style: as for `load_folders`.

    Raises:
        ValueError: the folder has another layout, there is no such part, or it is the test part by another name.
        OSError: a folder cannot be listed.
    """
    if not is_split(root):
        raise layout_error("split folders", root, LAYOUT)
    test = _TEST if _has_styles(root / _TEST) else _VALIDATION
    if split == _VALIDATION and test == _VALIDATION:
        raise ValueError(
            f"split must be train or test for {root}, whose val/ is the test part, got 'val': hold out categories of "
            "train/ instead"
        )
    folder = {_TRAINING: _TRAINING, _TEST: test}.get(split, _VALIDATION)
    if not _has_styles(root / folder):
        raise ValueError(f"split must be train or test for {root}, which has no {folder}/, got {split!r}")
    found = load_folders(root / folder, gallery_style)
    records = tuple(replace(r, path=f"{folder}/{r.path}", instance=None) for r in found.records)
    skipped = tuple(replace(entry, path=f"{folder}/{entry.path}") for entry in found.skipped)
    trained = {path.name for path in (root / _TRAINING / found.gallery_style).iterdir() if path.is_dir()}
    tested = {path.name for path in (root / test / found.gallery_style).iterdir() if path.is_dir()}
    return ImageSet(
        root.resolve().name,
        found.gallery_style,
        records,
        FolderReader(root),
        skipped,
        has_splits=True,
        unseen_categories=frozenset(tested - trained),
    )


def _has_styles(folder: Path) -> bool:
    names = {path.name.lower() for path in folder.iterdir() if path.is_dir()} if folder.is_dir() else set()
    return len(names) > 1 and bool(names & {*GALLERY_NAMES, "sketch", "sketches"})
