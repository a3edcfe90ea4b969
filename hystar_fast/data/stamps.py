"""Photographs with names from Debian's ``tuxpaint-stamps-default``, as the gallery for the embedded drawings.

The package (GPL-2) is not part of hystar_fast: ``apt-get download`` fetches it and ``dpkg-deb -x`` unpacks it. A stamp
is a PNG beside a text file whose first line is its name, such as "A frog.". Queries are the embedded drawings of the
concepts whose name has the same words as a stamp's, so that any photograph of this name is relevant.
"""

from __future__ import annotations

import re
from pathlib import Path

from PIL import Image

from hystar_fast.data.emoji import load_emoji
from hystar_fast.data.image_set import ImageSet, Record, layout_error
from hystar_fast.data.images import load_image
from hystar_fast.data.text_files import read_lines

GALLERY_STYLE = "photo"
PLACE = Path("usr/share/tuxpaint/stamps")
LAYOUT = f"the unpacked Debian package tuxpaint-stamps-default: {PLACE}/animals/…/<stamp>.png with <stamp>.txt"
_TOPICS = ("animals", "food", "hobbies", "household", "medical", "plants", "sports", "vehicles")
_DRAWN_FOLDERS = ("cartoon", "toys", "plastic")
_DRAWN = ("bee", "birch", "dog", "echidna", "fly", "hedgehog", "pizza", "tooth")  # in the folders of photographs
_ARTICLES = ("a", "an", "the", "some")


def load_stamps(root: str | Path, split: str = "test") -> ImageSet:
    """List the photographs as a gallery, and the drawings of the split's concepts with the name of one as queries.

    A picture's category is the words of its name. Photographs that no concept is named after stay in the gallery.

    Args:
        root: the folder that the package was unpacked into.
        split: "val" or "test", of the embedded drawings; there is nothing to train on.

    Raises:
        ValueError: another layout or split.
    """
    if split not in ("val", "test"):
        raise ValueError(f"split must be val or test for stamps, which are for evaluation alone, got {split!r}")
    root = Path(root)
    place = root / PLACE
    pictures = sorted(picture for topic in _TOPICS for picture in (place / topic).rglob("*.png"))
    photos = [
        Record(str(picture.relative_to(root)), GALLERY_STYLE, _words(_name(picture)))
        for picture in pictures
        if picture.with_suffix(".txt").is_file()
        and picture.stem not in _DRAWN
        and not any(folder in _DRAWN_FOLDERS for folder in picture.relative_to(place).parts)
    ]
    if not photos:
        raise layout_error("stamps", root, LAYOUT)
    names = {photo.category for photo in photos}
    drawings = load_emoji(split)
    queries = [
        Record(record.path, record.style, _words(record.captions[0]))
        for record in drawings.records
        if record.style != drawings.gallery_style and _words(record.captions[0]) in names
    ]

    def read(record: Record) -> Image.Image:
        return load_image(root / record.path) if record.style == GALLERY_STYLE else drawings.read(record)

    return ImageSet("stamps", GALLERY_STYLE, (*photos, *queries), read, has_splits=True)


def _name(picture: Path) -> str:
    """Return the first line of the text file beside a picture; the lines below translate it."""
    return next((line for _, line in read_lines(picture.with_suffix(".txt"))), picture.stem)


def _words(name: str) -> str:
    """Return the lower-case words of a name without an article.

    Example:
        >>> _words("A ginger 'root'."), _words("The full moon.")
        ('ginger root', 'full moon')
    """
    words = re.findall(r"\w+", name.lower())
    return " ".join(words[1:] if words and words[0] in _ARTICLES else words)
