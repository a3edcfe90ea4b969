"""Folders of styles, with folders of categories (Sketchy, TU-Berlin, QuickDraw) or with pictures of equal names."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from hystar_fast.data.flat_folders import GALLERY_NAMES, is_flat, load_flat_folders
from hystar_fast.data.flat_folders import LAYOUT as FLAT_LAYOUT
from hystar_fast.data.image_files import is_hidden, list_images, unsupported_reason
from hystar_fast.data.image_set import FolderReader, ImageSet, Record, Skipped, layout_error

LAYOUT = (
    "<style>/…/<category>/<picture> for at least two styles, one of them the gallery (photo, or as named), with "
    f"the same names of categories; or {FLAT_LAYOUT}"
)
STANDARD_RENDERING = "tx_000000000000"
STROKES = (".ndjson", ".npy", ".npz", ".bin")  # QuickDraw as Google publishes it: not image files
_COPY, _RENDERING = re.compile(r"-\d+$"), re.compile(r"tx_\d+")


def load_folders(root: str | Path, gallery_style: str | None = None) -> ImageSet:
    """List ``<style>/…/<category>/<picture>``; folders between style and category are ignored.

    Without categories, pictures of one name are pairs, see :mod:`hystar_fast.data.flat_folders`.

    Sketchy has every picture in several renderings: ``photo/tx_000000000000``, ``photo/tx_000100000000``, …. If a style
    has more than one such folder, only `STANDARD_RENDERING` is read, and the name of the data set says so. To use
    another rendering, link it into a folder of its own.

    A sketch of Sketchy, ``<photo>-<number>``, is an instance of the gallery photo of that name and category. If most
    sketches have no such photo, the data set has categories only.

    Pictures in unsupported formats (``.svg``, ``.heic``) are counted in `ImageSet.skipped`; other files are ignored.
    Links to folders are followed.

    Args:
        root: the folder, see `LAYOUT`.
        gallery_style: the folder of the gallery; by default one with a name of `GALLERY_NAMES`. TU-Berlin's ``png/``
            and QuickDraw-Extended's ``QuickDraw_sketches_final/`` are queries.

    Raises:
        ValueError: the folder has another layout; the message says what was expected and found.
        OSError: a folder cannot be listed.
    """
    root = Path(root)
    folders = [p.name for p in root.iterdir() if p.is_dir()] if root.is_dir() else []
    styles = sorted(name for name in folders if not is_hidden(name))
    if is_flat(root, styles):
        return load_flat_folders(root, styles, gallery_style)
    named = {style.lower(): style for style in reversed(styles)}
    gallery = gallery_style or next((named[name] for name in GALLERY_NAMES if name in named), None)
    if gallery not in styles or len(styles) < 2:
        raise layout_error("style folders", root, LAYOUT, _strokes(root))
    listed: dict[str, list[Path]] = {}
    unsupported: list[Path] = []
    for style in (gallery, *(s for s in styles if s != gallery)):
        pictures, others = list_images(root / style)
        # a picture outside every category does not belong to the data set
        listed[style] = [Path(style, path) for path in pictures if len(path.parts) > 1]
        unsupported += [Path(style, path) for path in others if len(path.parts) > 1]
    several = {style: _renderings(pictures) for style, pictures in listed.items()}
    several = {style: names for style, names in several.items() if len(names) > 1}
    for style, names in several.items():
        if STANDARD_RENDERING not in names:
            found = f"{', '.join(sorted(names))} below {style}/, of which none is {STANDARD_RENDERING}: keep one"
            raise layout_error("style folders", root, LAYOUT, found)
        listed[style] = [path for path in listed[style] if path.parts[1] == STANDARD_RENDERING]
        unsupported = [p for p in unsupported if p.parts[0] != style or p.parts[1] == STANDARD_RENDERING]
    empty = [style for style, pictures in listed.items() if not pictures]
    if empty:
        found = _strokes(root / empty[0]) or f"no <category>/<picture> below {empty[0]}/"
        raise layout_error("style folders", root, LAYOUT, found)
    photos = {(path.parent.name, path.stem) for path in listed[gallery]}
    queried = {path.parent.name for style in listed if style != gallery for path in listed[style]}
    if not queried & {category for category, _ in photos}:
        raise layout_error("style folders", root, LAYOUT, f"no category of {gallery}/ in any other style")
    records = [
        Record(path.as_posix(), style, path.parent.name, _instance(path, photos))
        for style, pictures in listed.items()
        for path in pictures
    ]
    # If only a few sketches carry a photo's name, they do so by chance.
    queries = [record for record in records if record.style != gallery]
    if 2 * sum(record.instance is not None for record in queries) < len(queries):
        records = [replace(record, instance=None) for record in records]
    read = ", ".join(f"{style}/{STANDARD_RENDERING}" for style in several)
    name = f"{root.name or 'folders'}{f' ({read})' if several else ''}"
    skipped = tuple(Skipped(path.as_posix(), unsupported_reason(path)) for path in unsupported)
    return ImageSet(name, gallery, tuple(records), FolderReader(root), skipped)


def _strokes(place: Path) -> str | None:
    """Describe a file or folder of strokes or arrays for an error message; None where there are none."""
    files = [place] if place.is_file() else sorted(p for p in place.rglob("*") if p.suffix.lower() in STROKES)
    if not files or files[0].suffix.lower() not in STROKES:
        return None
    name = files[0].name if len(files) == 1 else f"{files[0].name} and {len(files) - 1} more files like it"
    return f"{name}: strokes or arrays, not pictures; draw each into <style>/<category>/<picture>.png first"


def _renderings(pictures: list[Path]) -> set[str]:
    return {path.parts[1] for path in pictures if _RENDERING.fullmatch(path.parts[1])}


def _instance(path: Path, photos: set[tuple[str, str]]) -> str | None:
    category = path.parent.name
    for stem in (path.stem, _COPY.sub("", path.stem)):
        if (category, stem) in photos:
            return f"{category}/{stem}"
    return None
