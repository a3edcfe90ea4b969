"""The sources of an index: folders and lists of pictures, and the files in them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from hystar_fast.data.emoji import EmojiStyles
from hystar_fast.data.image_files import IMAGE_SUFFIXES, list_images, unsupported_reason
from hystar_fast.data.image_set import Skipped
from hystar_fast.data.images import load_image
from hystar_fast.data.text_files import read_text
from hystar_fast.index.engine import Engine, Item

LIST_SUFFIX = ".txt"


@dataclass(frozen=True)
class File:
    """A picture file of a source.

    Attributes:
        source: the name of its source.
        path: relative to the folder of the source.
        place: where it lies.
        size, mtime_ns: of the file.
    """

    source: str
    path: str
    place: str
    size: int
    mtime_ns: int


@dataclass(frozen=True)
class Found:
    """The picture files of some sources, and the files among them that cannot be read."""

    files: list[File]
    skipped: list[Skipped]


def folder_of(settings: Mapping[str, Any], source: str) -> Path | None:
    """Return the folder of a source; None for the embedded drawings, which are no files."""
    folder = settings["sources"].get(source, {}).get("folder")
    return None if folder is None else Path(folder)


def file_of(settings: Mapping[str, Any], item: Item) -> Path | None:
    """Return where the file of an item lies; None if it has none."""
    folder = folder_of(settings, item.source)
    return folder / item.path if folder is not None and item.path else None


def picture_of(settings: Mapping[str, Any], item: Item, *, least: int = 0) -> Image.Image:
    """Read the picture of an item; `least` as in `decode_image`.

    Raises:
        ValueError: it is not there, or cannot be read.
    """
    place = file_of(settings, item)
    if place is not None:
        return load_image(place, least=least)
    style = settings["sources"].get(item.source, {}).get("emoji")
    if style is None:
        raise ValueError(f"item must have a picture, got {item.id!r} without one")
    return EmojiStyles().image(style, item.id)


def register(engine: Engine, places: Sequence[Path]) -> Found:
    """Find the pictures of folders, files and lists, and make their folders sources of the index.

    A folder within a source is a part of it. In a folder that is a source, `sync` finds new pictures; pictures that
    were given alone, or in a list, are only looked after.

    Args:
        engine: its settings get new sources.
        places: folders, pictures, and text files (``.txt``) with the path of a picture on each line, relative to the
            file.

    Raises:
        ValueError: a place does not exist, or is none of these.
    """
    found = Found([], [])
    for place in places:
        if place.is_dir():
            _add(found, list_source(*_source(engine, place, whole=True)))
        elif not place.is_file():
            raise ValueError(f"SOURCE must be a folder, a picture or a list, but {place} does not exist or is no file")
        elif place.suffix.lower() == LIST_SUFFIX:
            lines = [line for line in read_text(place).splitlines() if line.strip()]
            _add(found, _files(engine, [place.parent / line for line in lines]))
        elif place.suffix.lower() in IMAGE_SUFFIXES:
            _add(found, _files(engine, [place]))
        else:
            raise ValueError(f"SOURCE must be a folder, a picture or a list ({LIST_SUFFIX}), got {place}")
    return Found([*{file.place: file for file in found.files}.values()], found.skipped)


def list_source(name: str, folder: Path, below: str = "") -> Found:
    """List the pictures of a source, or those in one of its folders.

    Raises:
        ValueError: the folder of the source does not exist.
    """
    if not (folder / below).is_dir():
        raise ValueError(
            f"source must be a folder that is there, but {folder / below} ({name!r}) is not: mount it, or say where it "
            "is now with `hystar-fast index move`"
        )
    images, unsupported = list_images(folder / below)
    found = Found([], [Skipped(_joined(below, path), unsupported_reason(path)) for path in unsupported])
    for path in images:
        file = _file(name, folder, _joined(below, path))
        if file is not None:
            found.files.append(file)
    return found


def list_known(name: str, folder: Path, paths: Sequence[str]) -> Found:
    """List those files of a source that are still there."""
    files = (_file(name, folder, path) for path in paths)
    return Found([file for file in files if file is not None], [])


def _files(engine: Engine, places: Sequence[Path]) -> Found:
    """Return single files with the sources of their folders."""
    found, sources = Found([], []), dict[Path, tuple[str, Path, str]]()
    for place in places:
        parent = place.parent
        if parent not in sources:
            sources[parent] = _source(engine, parent, whole=False)
        name, folder, below = sources[parent]
        path = _joined(below, place.name)
        file = _file(name, folder, path)
        if file is None:
            found.skipped.append(Skipped(path, f"the file {place} does not exist"))
        else:
            found.files.append(file)
    return found


def _source(engine: Engine, folder: Path, *, whole: bool) -> tuple[str, Path, str]:
    """Return the name and folder of the source that holds a folder, and where in it; a new one if there is none."""
    folder = folder.resolve()
    found, changed = _placed(engine.settings(), folder, whole=whole)
    if changed is None:
        return found

    def place(settings: dict[str, Any]) -> Mapping[str, Any]:  # another command may have added a source meanwhile
        nonlocal found
        found, changed = _placed(settings, folder, whole=whole)
        return settings if changed is None else changed

    engine.update_settings(place)
    return found


def _placed(
    settings: Mapping[str, Any], folder: Path, *, whole: bool
) -> tuple[tuple[str, Path, str], Mapping[str, Any] | None]:
    """Return what `_source` does, and the settings with it if they must be changed."""
    sources = settings["sources"]
    for name, entry in sources.items():
        if entry.get("folder") is None or not folder.is_relative_to(entry["folder"]):
            continue
        if entry["whole"] or folder == Path(entry["folder"]):
            below = os.path.relpath(folder, entry["folder"])
            found = name, Path(entry["folder"]), "" if below == "." else below
            if whole and not entry["whole"]:
                return found, {**settings, "sources": {**sources, name: {**entry, "whole": True}}}
            return found, None
    new = new_source(folder, sources, whole=whole)
    return (next(iter(new)), folder, ""), {**settings, "sources": {**sources, **new}}


def new_source(folder: Path, others: Mapping[str, Any], *, whole: bool = True) -> dict[str, Any]:
    """Return the entry of a folder among the sources of an index; its name is that of the folder, or with a number.

    The ids of the first source are the paths in it; those of another one begin with its name.
    """
    folder = folder.resolve()
    name = _free_name(folder.name or "pictures", others)
    return {name: {"folder": str(folder), "whole": whole, "prefix": f"{name}/" if others else ""}}


def _free_name(name: str, taken: Mapping[str, Any]) -> str:
    numbered: Iterator[str] = (f"{name}-{number}" for number in range(2, len(taken) + 3))
    return next(candidate for candidate in (name, *numbered) if candidate not in taken)


def _file(source: str, folder: Path, path: str) -> File | None:
    place = os.path.join(folder, path)
    try:
        state = os.stat(place)
    except OSError:
        return None
    return File(source, path, place, state.st_size, state.st_mtime_ns)


def _joined(below: str, path: object) -> str:
    return os.path.join(below, str(path)) if below else str(path)


def _add(found: Found, more: Found) -> None:
    found.files.extend(more.files)
    found.skipped.extend(more.skipped)
