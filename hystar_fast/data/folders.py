"""Folders of styles of categories: Sketchy, TU-Berlin and QuickDraw as they are unpacked, and anything arranged so."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from hystar_fast.data.records import ImageSet, Record, Skipped, from_folder, refuse
from hystar_fast.retrieval.picture_files import is_hidden, not_read, picture_files

GALLERY_NAMES = ("photo", "photos", "images", "image", "real")
LAYOUT = (
    "<style>/…/<category>/<picture> for at least two styles, one of them the gallery (photo, or as named), with "
    "the same names of categories"
)
STANDARD_RENDERING = "tx_000000000000"
STROKES = (".ndjson", ".npy", ".npz", ".bin")  # QuickDraw as Google publishes it: drawings that are no picture files
_COPY, _RENDERING = re.compile(r"-\d+$"), re.compile(r"tx_\d+")


def load_folders(root: str | Path, gallery_style: str | None = None) -> ImageSet:
    """List ``<style>/…/<category>/<picture>``; folders between style and category do not count.

    Sketchy has every picture several times, rendered in several ways: ``photo/tx_000000000000``,
    ``photo/tx_000100000000``, …. Where a style has more than one such folder, `STANDARD_RENDERING` alone is read, and
    the name of the data set says so; for another one, link it into a folder of its own.

    The sketches of Sketchy, ``<photo>-<number>``, belong to the photo whose name they carry: where the gallery has a
    picture of that name and category, they are its instance. Where most have no such photo, nobody has an instance.

    A picture of a category whose format is not read (``.svg``, ``.heic``) is counted in `ImageSet.skipped`; other files
    are no pictures and are not. Links to folders are followed.

    Args:
        root: the folder, see `LAYOUT`.
        gallery_style: the folder that answers; by default one of `GALLERY_NAMES`. TU-Berlin's ``png/`` and
            QuickDraw-Extended's ``QuickDraw_sketches_final/`` ask.

    Raises:
        ValueError: the folder has another layout; the message says what was expected and found.
        OSError: a folder that cannot be listed.
    """
    root = Path(root)
    folders = [p.name for p in root.iterdir() if p.is_dir()] if root.is_dir() else []
    styles = sorted(name for name in folders if not is_hidden(name))
    gallery = gallery_style or next((name for name in GALLERY_NAMES if name in styles), None)
    if gallery not in styles or len(styles) < 2:
        raise refuse("style folders", root, LAYOUT, _strokes(root))
    listed: dict[str, list[Path]] = {}
    unread: list[Path] = []
    for style in (gallery, *(s for s in styles if s != gallery)):
        pictures, others = picture_files(root / style)
        # what is in no category is no picture of the data set
        listed[style] = [Path(style, path) for path in pictures if len(path.parts) > 1]
        unread += [Path(style, path) for path in others if len(path.parts) > 1]
    several = {style: _renderings(pictures) for style, pictures in listed.items()}
    several = {style: names for style, names in several.items() if len(names) > 1}
    for style, names in several.items():
        if STANDARD_RENDERING not in names:
            found = f"{', '.join(sorted(names))} below {style}/, of which none is {STANDARD_RENDERING}: keep one"
            raise refuse("style folders", root, LAYOUT, found)
        listed[style] = [path for path in listed[style] if path.parts[1] == STANDARD_RENDERING]
        unread = [path for path in unread if path.parts[0] != style or path.parts[1] == STANDARD_RENDERING]
    empty = [style for style, pictures in listed.items() if not pictures]
    if empty:
        found = _strokes(root / empty[0]) or f"no <category>/<picture> below {empty[0]}/"
        raise refuse("style folders", root, LAYOUT, found)
    answers = {(path.parent.name, path.stem) for path in listed[gallery]}
    if not {path.parent.name for style in listed if style != gallery for path in listed[style]} & {
        c for c, _ in answers
    }:
        raise refuse("style folders", root, LAYOUT, f"no category of {gallery}/ in any other style")
    records = [
        Record(path.as_posix(), style, path.parent.name, _instance(path, answers))
        for style, pictures in listed.items()
        for path in pictures
    ]
    # A few sketches that share a photo's name by chance make no pairs of the whole data set.
    asking = [record for record in records if record.style != gallery]
    if 2 * sum(record.instance is not None for record in asking) < len(asking):
        records = [replace(record, instance=None) for record in records]
    read = ", ".join(f"{style}/{STANDARD_RENDERING}" for style in several)
    name = f"{root.name or 'folders'}{f' ({read})' if several else ''}"
    skipped = tuple(Skipped(path.as_posix(), not_read(path)) for path in unread)
    return ImageSet(name, gallery, tuple(records), from_folder(root), skipped)


def _strokes(place: Path) -> str | None:
    """What to say of a file or folder of strokes or bitmaps, None where there are none."""
    files = [place] if place.is_file() else sorted(p for p in place.rglob("*") if p.suffix.lower() in STROKES)
    if not files or files[0].suffix.lower() not in STROKES:
        return None
    name = files[0].name if len(files) == 1 else f"{files[0].name} and {len(files) - 1} more files like it"
    return f"{name}: strokes or arrays, no pictures; draw each into <style>/<category>/<picture>.png first"


def _renderings(pictures: list[Path]) -> set[str]:
    return {path.parts[1] for path in pictures if _RENDERING.fullmatch(path.parts[1])}


def _instance(path: Path, answers: set[tuple[str, str]]) -> str | None:
    category = path.parent.name
    for stem in (path.stem, _COPY.sub("", path.stem)):
        if (category, stem) in answers:
            return f"{category}/{stem}"
    return None
