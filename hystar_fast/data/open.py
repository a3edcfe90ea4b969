"""Data sets by name and place: ``emoji``, ``dsr:/data/DSR``, or a folder or CSV file whose layout is recognised."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from hystar_fast.data.domainnet import listed_styles, load_domainnet
from hystar_fast.data.dsr import load_dsr
from hystar_fast.data.folders import STROKES, load_folders
from hystar_fast.data.icons import load_icons
from hystar_fast.data.pairs import load_pairs
from hystar_fast.data.records import ImageSet, Record
from hystar_fast.data.shards import load_shards
from hystar_fast.retrieval.picture_files import is_hidden
from hystar_fast.retrieval.protocol import GALLERY_STYLE, IMAGE_STYLES, load_split

SPLITS = ("train", "val", "test")
KINDS = ("emoji", "dsr", "domainnet", "folders", "pairs", "shards", "icons")


def open_images(data: str, split: str = "test", *, gallery_style: str | None = None) -> ImageSet:
    """Open a data set.

    Args:
        data: "emoji", "<kind>:<path>" with a kind of `KINDS`, or a path whose kind is recognised by its layout.
        split: "train", "val" or "test". Folders, pairs and shards have no splits, and each is all of them
            (`ImageSet.splits`).
        gallery_style: for "folders", "shards" and "icons", the style that answers; in the others it is fixed.

    Raises:
        ValueError: an unknown kind, nothing at the path, a gallery style where it is fixed, or another layout than the
            kind's; the message says what was expected and found.

    Example:
        >>> emoji = open_images("emoji", "val")
        >>> emoji.gallery_style, len(emoji.of_style("sketch"))
        ('noto', 165)
    """
    if data == "emoji":
        check_fixed(data, gallery_style)
        return open_emoji(split)
    kind, separator, place = data.partition(":")
    if not separator or kind not in KINDS:
        kind, place = "", data
    path = Path(place)
    if not path.exists():
        kinds = ", ".join(f"{kind}:<path>" for kind in KINDS[1:])
        raise ValueError(f"data must be emoji, {kinds} or a path, but there is nothing at {place!r}")
    kind = kind or _recognised(path, split)
    if kind in ("dsr", "domainnet", "pairs"):
        check_fixed(kind, gallery_style)
    if kind == "dsr":
        return load_dsr(path, split)
    if kind == "domainnet":
        return load_domainnet(path, split)
    if kind == "icons":
        return load_icons(path, split, gallery_style)
    if kind == "shards":
        return load_shards(path, gallery_style)
    return load_pairs(path) if kind == "pairs" else load_folders(path, gallery_style)


def check_fixed(kind: str, gallery_style: str | None) -> None:
    """ValueError if a gallery style is given for a kind of data that has one of its own."""
    if gallery_style is not None:
        raise ValueError(
            f"gallery_style must be left out for {kind}, whose gallery is fixed (it is for folders, shards and icons), "
            f"got {gallery_style!r}"
        )


def _recognised(path: Path, split: str) -> str:
    """The kind of a layout. One split file is enough: another that is missing is for the loader to name."""
    if path.suffix.lower() in STROKES:
        return "folders"
    if path.is_file():
        return "shards" if path.suffix == ".tar" else "pairs"
    if any(not is_hidden(shard.name) for shard in path.glob("*.tar")):
        return "shards"
    if (path / "icons.json").is_file():
        return "icons"
    names = dict.fromkeys((split, *SPLITS))
    if (path / "images").is_dir() and any((path / f"{name}.json").is_file() for name in names):
        return "dsr"
    listed = (style for name in names for style in listed_styles(path, name))
    return "domainnet" if any((path / style).is_dir() for style in listed) else "folders"


def open_emoji(split: str, styles: Sequence[str] = IMAGE_STYLES) -> ImageSet:
    """The embedded drawings as a data set, with other query styles than usual where asked for.

    Raises:
        ValueError: an unknown split or style.
    """
    concepts = load_split(split, styles)
    place: dict[str, tuple[str, int]] = {}
    records = []
    for style in (GALLERY_STYLE, *styles):
        for row in concepts.rows(style).tolist():
            concept = concepts.concepts[row]
            record = Record(f"{style}/{concept.id}", style, concept.subgroup, concept.id, concept.name)
            place[record.path] = (style, row)
            records.append(record)

    def read(record: Record) -> Image.Image:
        style, row = place[record.path]
        return Image.fromarray(concepts.images[style][row].permute(1, 2, 0).numpy())

    return ImageSet("emoji", GALLERY_STYLE, tuple(records), read, splits=True)
