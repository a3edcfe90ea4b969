"""Send the picture files of an index, or their thumbnails: only from below their source, and only known formats."""

from __future__ import annotations

import io
import os
import stat
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from threading import Lock
from typing import Any, BinaryIO

from PIL import Image

from hystar_fast.data.images import MOST_PIXELS
from hystar_fast.data.tar_files import find_member
from hystar_fast.index.engine import Engine, Item
from hystar_fast.index.sources import folder_of, picture_of
from hystar_fast.serve.decoding import FORMATS, Decoder, media_type

THUMBNAIL = 256  # pixels of the longer side
_CACHED = 2000  # thumbnails of some 10 kB


class PictureGone(Exception):
    """The file of an item is not there, or is no picture that may be sent."""


class Pictures:
    """The picture files of the items of an engine."""

    def __init__(self, engine: Engine) -> None:
        self._engine, self._decoder = engine, Decoder(MOST_PIXELS, MOST_PIXELS)
        self._thumbnails: OrderedDict[tuple[str, str, int], bytes] = OrderedDict()
        self._lock = Lock()

    def open(self, item: Item) -> tuple[BinaryIO, str]:
        """Open the file of an item.

        Returns:
            The file, and its media type.

        Raises:
            PictureGone: it is not there, lies outside its source, or has another format than those of `FORMATS`.
        """
        settings = self._engine.settings()
        if _is_drawing(settings, item):
            content = io.BytesIO()
            picture_of(settings, item).save(content, "PNG")
            content.seek(0)
            return content, "image/png"
        file = _opened(settings, item)
        try:
            with Image.open(file, formats=FORMATS) as image:
                kind = media_type(image)
            file.seek(0)
        except Exception as error:  # decoders raise anything
            file.close()
            raise PictureGone(f"{item.key} is no picture of a known format") from error
        return file, kind

    def thumbnail(self, item: Item) -> bytes:
        """Return a WebP of at most `THUMBNAIL` pixels a side.

        Raises:
            PictureGone: as `open`, or the picture is damaged.
        """
        name = (item.key, item.sha256, item.mtime_ns)
        with self._lock:
            if name in self._thumbnails:
                self._thumbnails.move_to_end(name)
                return self._thumbnails[name]
        picture = self._picture(item)
        picture.thumbnail((THUMBNAIL, THUMBNAIL))
        content = io.BytesIO()
        picture.save(content, "WEBP", quality=80)
        with self._lock:
            self._thumbnails[name] = content.getvalue()
            while len(self._thumbnails) > _CACHED:
                self._thumbnails.popitem(last=False)
        return content.getvalue()

    def _picture(self, item: Item) -> Image.Image:
        settings = self._engine.settings()
        if _is_drawing(settings, item):
            return picture_of(settings, item)
        with _opened(settings, item) as file:
            try:
                return self._decoder.decode(file.read(), "picture", least=2 * THUMBNAIL)
            except ValueError as error:
                raise PictureGone(str(error)) from error


def _is_drawing(settings: Mapping[str, Any], item: Item) -> bool:
    """Return whether an item is one of the embedded drawings, which are no files."""
    return "emoji" in settings["sources"].get(item.source, {})


def _opened(settings: Mapping[str, Any], item: Item) -> BinaryIO:
    """Open the file of an item, which may be a member of a tar.

    Raises:
        PictureGone: it is not there, or lies outside its source.
    """
    folder = folder_of(settings, item.source)
    if folder is None or not item.path:
        raise PictureGone(f"{item.key} has no file")
    try:
        try:
            return _regular(folder, folder / item.path)
        except NotADirectoryError:
            tar, member = find_member(folder / item.path)
            with _regular(folder, tar) as file:
                file.seek(member.offset)
                return io.BytesIO(file.read(member.size))
    except (OSError, ValueError) as error:
        raise PictureGone(f"the file of {item.key} cannot be opened") from error


def _regular(folder: Path, place: Path) -> BinaryIO:
    """Open a regular file below a folder, by the real path of what was opened."""
    file = os.fdopen(os.open(place, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb")
    real = Path(os.readlink(f"/proc/self/fd/{file.fileno()}"))
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode) or not real.is_relative_to(os.path.realpath(folder)):
        file.close()
        raise PictureGone(f"{place} lies outside its source")
    return file


def placeholder() -> bytes:
    """Return the WebP that stands for a picture whose file is gone."""
    content = io.BytesIO()
    Image.new("RGB", (THUMBNAIL, THUMBNAIL), "#d8d8d8").save(content, "WEBP")
    return content.getvalue()
