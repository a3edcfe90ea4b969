"""The sources of an index: folders, lists and tars of pictures, and the files in them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image

from hystar_fast.data.emoji import EmojiStyles
from hystar_fast.data.image_files import IMAGE_SUFFIXES, is_hidden, list_images, unsupported_reason
from hystar_fast.data.image_set import Skipped
from hystar_fast.data.images import decode_image
from hystar_fast.data.tar_files import TAR_SUFFIX, member_path
from hystar_fast.data.text_files import read_text, split_lines
from hystar_fast.data.webdataset import load_webdataset
from hystar_fast.index.engine import Engine, Item
from hystar_fast.index.picture_files import opened, reason_of, state_of

LIST_SUFFIX = ".txt"
_PLACES = f"a folder, a picture or a list ({LIST_SUFFIX}), or a tar"


@dataclass(frozen=True)
class File:
    """A picture file of a source.

    Attributes:
        source: the name of its source.
        path: relative to the folder of the source.
        place: where it lies.
        size, mtime_ns: of the file.
        caption: words that come with it in a tar.
    """

    source: str
    path: str
    place: str
    size: int
    mtime_ns: int
    caption: str = ""


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
        try:
            with opened(place) as (file, _):
                return decode_image(file, str(place), least=least)
        except OSError as error:
            raise ValueError(f"path must be an image file, but {place} cannot be read: {reason_of(error)}") from error
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
        places: folders of pictures or of tars, pictures, tars, and text files (``.txt``) with the path of a picture on
            each line, relative to the file.

    Raises:
        ValueError: a place does not exist, or is none of these.
    """
    found = Found([], [])
    for place in places:
        if place.is_dir():
            tars = holds_tars(place)
            _add(found, list_source(*source_for(engine, place, whole=True, tars=tars), tars=tars))
        elif not place.is_file():
            raise ValueError(f"SOURCE must be {_PLACES}, but {place} does not exist or is no file")
        elif place.suffix.lower() == LIST_SUFFIX:
            lines = [line for line in split_lines(read_text(place)) if line.strip()]
            _add(found, _files(engine, [place.parent / line for line in lines]))
        elif place.suffix.lower() in IMAGE_SUFFIXES:
            _add(found, _files(engine, [place]))
        elif place.suffix.lower() == TAR_SUFFIX:
            name, folder, _ = source_for(engine, place.parent, whole=False, tars=True)
            _add(found, list_tars(name, folder, place))
        else:
            raise ValueError(f"SOURCE must be {_PLACES}, got {place}")
    return Found([*{file.place: file for file in found.files}.values()], found.skipped)


def holds_tars(folder: Path) -> bool:
    """Return whether the pictures of a folder are in tars: it has some, and no picture beside or below them."""
    return any(not is_hidden(path.name) for path in folder.glob(f"*{TAR_SUFFIX}")) and not list_images(folder)[0]


def is_of_tars(entry: Mapping[str, Any]) -> bool:
    """Return whether a source, an entry of the settings, has its pictures in tars."""
    return bool(entry.get("tars", False))


def list_tars(name: str, folder: Path, place: Path) -> Found:
    """List the pictures in a tar, or in the tars of a folder; of several styles (``1.photo.jpg``) those of the gallery.

    Args:
        name, folder: of the source.
        place: the tar within the folder, or the folder.

    Raises:
        ValueError: a tar cannot be read, or has another layout than `hystar_fast.data.webdataset.LAYOUT`.
    """
    images = load_webdataset(place)
    found = Found([], [*images.skipped])
    for record in images.of_style(images.gallery_style):
        file = _file(name, folder, member_path(record.path))
        if file is not None:
            found.files.append(replace(file, caption=record.caption or ""))
    return found


def list_source(name: str, folder: Path, below: str = "", *, tars: bool = False) -> Found:
    """List the pictures of a source, or those in one of its folders; `tars` as `is_of_tars`.

    Raises:
        ValueError: the folder of the source does not exist.
        OSError: a folder cannot be listed, or it is not known whether a file is there.
    """
    if not (folder / below).is_dir():
        raise ValueError(
            f"source must be a folder that is there, but {folder / below} ({name!r}) is not: mount it, or say where it "
            "is now with `hystar-fast index move`"
        )
    if tars:
        return list_tars(name, folder, folder) if any(folder.glob(f"*{TAR_SUFFIX}")) else Found([], [])
    images, unsupported = list_images(folder / below)
    found = Found([], [Skipped(joined(below, path), unsupported_reason(path)) for path in unsupported])
    for path in images:
        file = _file(name, folder, joined(below, path))
        if file is not None:
            found.files.append(file)
    return found


def list_known(name: str, folder: Path, paths: Sequence[str], *, tars: bool = False) -> Found:
    """List those files of a source that are still there; arguments and errors as `list_source`."""
    if tars:  # a tar that is damaged is an error, and not empty
        wanted, names = {*paths}, dict.fromkeys(path.partition("/")[0] for path in paths)
        there = (list_tars(name, folder, folder / tar).files for tar in names if (folder / tar).is_file())
        return Found([file for files in there for file in files if file.path in wanted], [])
    files = (_file(name, folder, path) for path in paths)
    return Found([file for file in files if file is not None], [])


def _files(engine: Engine, places: Sequence[Path]) -> Found:
    """Return single files with the sources of their folders."""
    found, sources = Found([], []), dict[Path, tuple[str, Path, str]]()
    for place in places:
        parent = place.parent
        if parent not in sources:
            sources[parent] = source_for(engine, parent, whole=False)
        name, folder, below = sources[parent]
        path = joined(below, place.name)
        try:
            file = _file(name, folder, path)
        except OSError as error:
            found.skipped.append(Skipped(path, reason_of(error)))
            continue
        if file is None:
            found.skipped.append(Skipped(path, f"the file {place} does not exist"))
        else:
            found.files.append(file)
    return found


def source_for(engine: Engine, folder: Path, *, whole: bool, tars: bool = False) -> tuple[str, Path, str]:
    """Return the name and folder of the source that holds a folder, and where in it; a new one if there is none.

    Args:
        engine: its settings get a new source.
        folder: of pictures or tars.
        whole: whether all that is in it belongs to the index.
        tars: as `is_of_tars`.
    """
    folder = folder.resolve()
    found, changed = _placed(engine.settings(), folder, whole=whole, tars=tars)
    if changed is None:
        return found

    def place(settings: dict[str, Any]) -> Mapping[str, Any]:  # another command may have added a source meanwhile
        nonlocal found
        found, changed = _placed(settings, folder, whole=whole, tars=tars)
        return settings if changed is None else changed

    engine.update_settings(place)
    return found


def _placed(
    settings: Mapping[str, Any], folder: Path, *, whole: bool, tars: bool
) -> tuple[tuple[str, Path, str], Mapping[str, Any] | None]:
    """Return what `source_for` does, and the settings with it if they must be changed."""
    sources = settings["sources"]
    for name, entry in sources.items():
        held = Path(entry["folder"]) if entry.get("folder") is not None else None
        if held is None or is_of_tars(entry) != tars or not folder.is_relative_to(held):
            continue
        if folder == held or (entry["whole"] and not tars):
            below = os.path.relpath(folder, held)
            found = name, held, "" if below == "." else below
            if whole and not entry["whole"]:
                return found, {**settings, "sources": {**sources, name: {**entry, "whole": True}}}
            return found, None
    new = new_source(folder, sources, whole=whole, tars=tars)
    return (next(iter(new)), folder, ""), {**settings, "sources": {**sources, **new}}


def new_source(folder: Path, others: Mapping[str, Any], *, whole: bool = True, tars: bool = False) -> dict[str, Any]:
    """Return the entry of a folder among the sources of an index; its name is that of the folder, or with a number.

    The ids of the first source are the paths in it; those of another one begin with its name.
    """
    folder = folder.resolve()
    name = free_name(folder.name or "pictures", others)
    entry = {"folder": str(folder), "whole": whole, "prefix": f"{name}/" if others else ""}
    return {name: {**entry, "tars": True} if tars else entry}


def free_name(name: str, taken: Mapping[str, Any]) -> str:
    """Return a name that no source has: this one, or with a number."""
    numbered: Iterator[str] = (f"{name}-{number}" for number in range(2, len(taken) + 3))
    return next(candidate for candidate in (name, *numbered) if candidate not in taken)


def _file(source: str, folder: Path, path: str) -> File | None:
    place = os.path.join(folder, path)
    state = state_of(place)
    return None if state is None else File(source, path, place, *state)


def joined(below: str, path: object) -> str:
    """Return a path below a folder of a source; "" is the source itself."""
    return os.path.join(below, str(path)) if below else str(path)


def _add(found: Found, more: Found) -> None:
    found.files.extend(more.files)
    found.skipped.extend(more.skipped)
