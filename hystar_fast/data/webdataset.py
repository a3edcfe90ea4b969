"""WebDataset shards: tar files whose members share a key; the pictures of one key show one thing in several styles."""

from __future__ import annotations

import io
import tarfile
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, TypeAlias

from PIL import Image

from hystar_fast.data.flat_folders import GALLERY_NAMES
from hystar_fast.data.image_files import IMAGE_SUFFIXES, UNSUPPORTED_SUFFIXES, is_hidden, unsupported_reason
from hystar_fast.data.image_set import ImageSet, Record, Skipped, layout_error
from hystar_fast.data.images import decode_image
from hystar_fast.data.tar_files import Member, list_members, read_member
from hystar_fast.data.text_files import decode_text, parse_json, split_lines

UNNAMED_STYLE = "image"
LAYOUT = (
    "a .tar or a folder of them, not compressed, with <key>.<style>.<png, jpg, …> for at least two styles, one of them "
    "the gallery (photo, image, or as named; <key>.jpg is of style image), or for the gallery alone and captions; and "
    "if there are <key>.txt (captions, one a line), <key>.cls (category) and <key>.json (an object with caption, a "
    "text or a list of texts, and category)"
)


@dataclass
class _Sample:
    pictures: dict[str, str] = field(default_factory=dict)  # style -> place
    category: str | None = None
    captions: tuple[str, ...] = ()


_Place: TypeAlias = tuple[Path, Member]


def load_webdataset(path: str | Path, gallery_style: str | None = None) -> ImageSet:
    """List the members of WebDataset shards; pictures are read directly from the tar files.

    If a key has several pictures of one style, the first is used and the others are counted in `ImageSet.skipped`, as
    are pictures in unsupported formats. If a tar has two members of one name, the later one counts, as in any tar.

    Args:
        path: a tar file or a folder of them, see `LAYOUT`. A key may span neither shards nor folders within one.
        gallery_style: the style of the gallery; by default one of `hystar_fast.data.flat_folders.GALLERY_NAMES`, or
            the only style there is.

    Raises:
        ValueError: the shards have another layout; the message says what was expected and found.
    """
    path = Path(path)
    shards = sorted(p for p in path.glob("*.tar") if not is_hidden(p.name)) if path.is_dir() else [path]
    if not shards:
        raise layout_error("WebDataset shards", path, LAYOUT)
    places: dict[str, _Place] = {}
    samples: dict[str, _Sample] = {}
    skipped: list[Skipped] = []
    for shard in shards:
        _read_shard(shard, samples, places, skipped)
    styles = sorted({style for sample in samples.values() for style in sample.pictures})
    only = styles[0] if len(styles) == 1 else None
    gallery = gallery_style or next((name for name in GALLERY_NAMES if name in styles), only)
    if gallery not in styles:
        raise layout_error("WebDataset shards", path, LAYOUT, f"styles {styles}" if styles else "no pictures")
    records = [
        Record(sample.pictures[style], style, sample.category, key, sample.captions)
        for style in (gallery, *(s for s in styles if s != gallery))
        for key, sample in samples.items()
        if style in sample.pictures
    ]

    def read(record: Record) -> Image.Image:
        return decode_image(io.BytesIO(read_member(*places[record.path])), record.path)

    return ImageSet(path.stem or "shards", gallery, tuple(records), read, tuple(skipped))


def _read_shard(shard: Path, samples: dict[str, _Sample], places: dict[str, _Place], skipped: list[Skipped]) -> None:
    try:
        members = list_members(shard)
        for full, member in members.items():
            name = PurePosixPath(full)
            if is_hidden(name.name):
                continue
            stem, _, extension = name.name.partition(".")
            sample = samples.setdefault(f"{shard.stem}/{name.parent / stem}", _Sample())
            *style, kind = extension.lower().split(".")
            path = f"{shard.name}/{full}"
            if f".{kind}" in IMAGE_SUFFIXES:
                shown = ".".join(style) or UNNAMED_STYLE
                first = sample.pictures.setdefault(shown, path)
                if first == path:
                    places[path] = shard, member
                else:
                    skipped.append(Skipped(path, f"another picture of style {shown} beside {first}"))
            elif f".{kind}" in UNSUPPORTED_SUFFIXES:
                skipped.append(Skipped(path, unsupported_reason(name)))
            elif kind in ("txt", "cls", "json") and not style:
                _read_text(sample, kind, read_member(shard, member), path, skipped)
    except (tarfile.TarError, OSError) as error:
        raise layout_error("WebDataset shards", shard, LAYOUT, str(error) or type(error).__name__) from error


def _read_text(sample: _Sample, kind: str, content: bytes, name: str, skipped: list[Skipped]) -> None:
    try:
        text = decode_text(content, name)
        lines = [line.strip() for line in split_lines(text) if line.strip()]
        found: Any = {"txt": {"caption": lines}, "cls": {"category": lines[:1]}}.get(kind) or parse_json(text)
        captions, categories = (_texts(found, field_name) for field_name in ("caption", "category"))
        if len(categories) > 1:
            raise ValueError(f"category must be one text, got {len(categories)}")
    except (ValueError, AttributeError) as error:
        skipped.append(Skipped(name, f"unreadable text: {error}"))
        return
    sample.captions = captions or sample.captions
    sample.category = categories[0] if categories else sample.category


def _texts(found: Any, name: str) -> tuple[str, ...]:
    """Return the texts of an entry of an object: one, or a list of them; numbers count as texts."""
    value = found.get(name)
    values = value if isinstance(value, list) else [value]
    if not all(entry is None or isinstance(entry, str | int | float) for entry in values):
        raise ValueError(f"{name} must be a text or a list of texts, got {str(value)[:60]}")
    return tuple(str(entry) for entry in values if entry not in (None, ""))
