"""Open a data set by name and place: ``emoji``, ``dsr:/data/DSR``, or a folder or file whose layout is recognised."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hystar_fast.data.captions import is_captions, load_captions
from hystar_fast.data.csv_pairs import load_csv_pairs
from hystar_fast.data.domain_sets import DOMAIN_SETS, load_domain_set
from hystar_fast.data.domainnet import load_domainnet, styles_with_split
from hystar_fast.data.dsr import load_dsr
from hystar_fast.data.emoji import QUERY_STYLES, load_emoji
from hystar_fast.data.folders import STROKES, load_folders
from hystar_fast.data.icons import load_icons
from hystar_fast.data.image_files import is_hidden
from hystar_fast.data.image_set import ImageSet, layout_error
from hystar_fast.data.split_folders import is_split, load_split_folders
from hystar_fast.data.stamps import PLACE as STAMPS
from hystar_fast.data.stamps import load_stamps
from hystar_fast.data.text_pairs import is_crossmodal, load_crossmodal
from hystar_fast.data.webdataset import LAYOUT, load_webdataset

SPLITS = ("train", "val", "test")
KINDS = (
    *("emoji", "dsr", "domainnet", "folders", "pairs", "captions", "shards", "icons", "stamps", "crossmodal"),
    *DOMAIN_SETS,
)
_FIXED_GALLERY = ("emoji", "dsr", "domainnet", "pairs", "captions", "stamps", "crossmodal")


def open_images(
    data: str, split: str = "test", *, gallery_style: str | None = None, styles: Sequence[str] = ()
) -> ImageSet:
    """Open a data set.

    Args:
        data: "emoji", "emoji:keywords" (captions of names and keywords), "<kind>:<path>" with a kind of `KINDS`, or a
            path whose kind is recognised by its layout.
        split: "train", "val" or "test". Folders, pairs, captions and shards have no splits: each is the whole data set
            (`ImageSet.has_splits`); but folders in ``train/`` and ``val/`` have.
        gallery_style: for "folders", "shards", "icons", "pacs" and "office-home", the style of the gallery; the others
            have their own.
        styles: for "emoji" and "domainnet", the query styles, where they should not be the usual ones ("emoji" also has
            "flat" and "photo3d"); the others list all their styles.

    Raises:
        ValueError: an unknown kind, nothing at the path, a gallery style where the data set has its own, or another
            layout than that of the kind; the message says what was expected and found.

    Example:
        >>> emoji = open_images("emoji", "val")
        >>> emoji.gallery_style, len(emoji.of_style("sketch"))
        ('noto', 165)
    """
    kind, separator, place = data.partition(":")
    if data != "emoji" and (not separator or kind not in KINDS):
        kind, place = "", data
    path = Path(place)
    if kind != "emoji" and not path.exists():
        kinds = ", ".join(f"{kind}:<path>" for kind in KINDS[1:])
        raise ValueError(f"data must be emoji, {kinds} or a path, but {place!r} does not exist")
    kind = kind or _recognised(path, split)
    if gallery_style is not None and kind in _FIXED_GALLERY:
        raise ValueError(
            f"gallery_style must be left out for {kind}, which has its own gallery (it is for folders, shards and "
            f"icons, pacs and office-home), got {gallery_style!r}"
        )
    match kind:
        case "emoji":
            return load_emoji(split, styles or QUERY_STYLES, captions=place if separator else "name")
        case "dsr":
            return load_dsr(path, split)
        case "domainnet":
            return load_domainnet(path, split, styles or None)
        case "pacs" | "office-home":
            return load_domain_set(kind, path, gallery_style)
        case "icons":
            return load_icons(path, split, gallery_style)
        case "stamps":
            return load_stamps(path, split)
        case "crossmodal":
            return load_crossmodal(path, split)
        case "shards":
            images = load_webdataset(path, gallery_style)
            if not any(record.style != images.gallery_style or record.captions for record in images.records):
                raise layout_error("WebDataset shards", path, LAYOUT, f"styles {[images.gallery_style]}")
            return images
        case "captions":
            return load_captions(path)
        case "pairs":
            return load_csv_pairs(path)
        case _:
            if is_split(path):
                return load_split_folders(path, split, gallery_style)
            return load_folders(path, gallery_style)


def place_of(data: str) -> str:
    """Return the path of a data set without its kind: "/a" for "folders:/a"."""
    kind, separator, place = data.partition(":")
    return place if separator and kind in KINDS else data


def _recognised(path: Path, split: str) -> str:
    """Return the kind of a layout. One split file is enough: the loader names another that is missing."""
    if path.suffix.lower() in STROKES:
        return "folders"
    if path.is_file():
        return "shards" if path.suffix == ".tar" else "captions" if is_captions(path) else "pairs"
    if any(not is_hidden(shard.name) for shard in path.glob("*.tar")):
        return "shards"
    if (path / "icons.json").is_file():
        return "icons"
    if (path / STAMPS).is_dir():
        return "stamps"
    names = dict.fromkeys((split, *SPLITS))
    if (path / "images").is_dir() and any((path / f"{name}.json").is_file() for name in names):
        return "dsr"
    if is_crossmodal(path):
        return "crossmodal"
    styles = (style for name in names for style in styles_with_split(path, name))
    return "domainnet" if any((path / style).is_dir() for style in styles) else "folders"
