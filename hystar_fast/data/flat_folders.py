"""Folders of styles without categories: ``sketches/`` and ``photos/`` with equal file names."""

from __future__ import annotations

import re
from pathlib import Path

from hystar_fast.data.image_files import is_hidden, list_images, unsupported_reason
from hystar_fast.data.image_set import FolderReader, ImageSet, Record, Skipped, layout_error

GALLERY_NAMES = (
    *("photo", "photos", "images", "image", "real", "gallery", "picture", "pictures", "target", "targets"),
    "extended_photo",  # of Sketchy Extended
)
_QUERY_NAMES = re.compile(r"sketch|drawing|drawn|quer|edge|outline|scribble|low_?res|paint|art")
LAYOUT = (
    "pictures directly in two folders or more, with the same file names: sketches/a.png belongs to photos/a.jpg, and "
    "so does sketches/a-2.png"
)
_COPY = re.compile(r"-\d+$")


def is_flat(root: Path, styles: list[str]) -> bool:
    """Return whether the pictures stand directly in at least two style folders, and nowhere below them."""
    listed = [list_images(root / style)[0] for style in styles]
    pictures = [paths for paths in listed if paths]
    return len(pictures) > 1 and all(len(path.parts) == 1 for paths in pictures for path in paths)


def gallery_of_sketches(root: Path) -> Path | None:
    """Return the folder of the gallery where all other pictures of `root` are sketches of its own; None otherwise."""
    styles = sorted(p.name for p in root.iterdir() if p.is_dir() and not is_hidden(p.name))
    if not is_flat(root, styles) or any(len(path.parts) == 1 for path in list_images(root)[0]):
        return None
    try:
        images = load_flat_folders(root, styles)
    except ValueError:
        return None
    drawn = all(_QUERY_NAMES.search(style.lower()) for style in images.query_styles)
    return root / images.gallery_style if drawn else None


def load_flat_folders(root: Path, styles: list[str], gallery_style: str | None = None) -> ImageSet:
    """List ``<style>/<picture>``: a query belongs to the gallery picture of its name, whatever the suffixes are.

    Args:
        root: the folder, see `LAYOUT`.
        styles: its folders.
        gallery_style: the folder of the gallery; by default the one with a name of `GALLERY_NAMES`, or of two folders
            the one that is not named after sketches.

    Raises:
        ValueError: it is not clear which folder is the gallery, or no names match.
    """
    listed = {style: list_images(root / style) for style in styles}
    listed = {style: found for style, found in listed.items() if found[0]}
    gallery = _gallery(root, list(listed), gallery_style)
    photos: dict[str, Path] = {}
    for path in listed[gallery][0]:
        if photos.setdefault(path.stem, path) != path:
            found = f"{photos[path.stem]} and {path} in {gallery}/, one name for two pictures: rename one"
            raise layout_error("folders of equal file names", root, LAYOUT, found)
    records = [Record(f"{gallery}/{path}", gallery, None, name) for name, path in photos.items()]
    for style in listed:
        if style != gallery:
            records += [Record(f"{style}/{path}", style, None, _partner(path, photos)) for path in listed[style][0]]
    queries = records[len(photos) :]
    if not any(record.instance for record in queries):
        found = f"{queries[0].path} and {records[0].path}, and no query with the name of a picture in {gallery}/"
        fix = "give both the same name, or list the pairs in a CSV with the columns query,target"
        raise layout_error("folders of equal file names", root, LAYOUT, f"{found}; {fix}")
    skipped = [
        Skipped(f"{style}/{path}", unsupported_reason(path)) for style, (_, others) in listed.items() for path in others
    ]
    return ImageSet(root.resolve().name or "folders", gallery, tuple(records), FolderReader(root), tuple(skipped))


def _gallery(root: Path, styles: list[str], wanted: str | None) -> str:
    if wanted in styles:
        return wanted
    named = [style for style in styles if style.lower() in GALLERY_NAMES]
    others = [style for style in styles if not _QUERY_NAMES.search(style.lower())]
    if wanted is None and len(named) == 1:
        return named[0]
    if wanted is None and not named and len(styles) == 2 and len(others) == 1:
        return others[0]
    raise ValueError(
        f"gallery_style must name the folder of {root} whose pictures are to be found, one of {', '.join(styles)}, got "
        f"{wanted!r}"
        if wanted is not None
        else f"gallery_style must say which of {', '.join(named or styles)} in {root} holds the pictures to be found"
    )


def _partner(path: Path, photos: dict[str, Path]) -> str | None:
    return next((stem for stem in (path.stem, _COPY.sub("", path.stem)) if stem in photos), None)
