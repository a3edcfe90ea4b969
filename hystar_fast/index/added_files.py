"""Files of pictures that came over HTTP: a folder beside a local index, where each stays as long as its item."""

from __future__ import annotations

import fcntl
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hystar_fast.data.read_ahead import in_batches
from hystar_fast.index.engine import Engine, Item
from hystar_fast.index.sources import free_name
from hystar_fast.index.where import Condition, Where

_SOURCE, _FOLDER = ".added", "added"
_OURS = re.compile(r"(?P<sha256>[0-9a-f]{64})\.[a-z]+|\.[0-9a-f]{12}\.partial")  # a picture, or a part of one
_AT_ONCE = 500  # files that are looked up by one query


def folder_of_added(engine: Engine) -> Path | None:
    """Return the folder; None for an engine without a folder of its own, which keeps no file."""
    return None if engine.folder is None else Path(engine.folder).resolve() / _FOLDER


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Let no other thread or process write or remove files of the folder; it is made if it is not there."""
    folder.mkdir(exist_ok=True)
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def source_of_added(engine: Engine, folder: Path) -> str:
    """Return the name of the source whose folder this is, a new one if there is none.

    The source of an index that was copied or moved is another, as its files lie beside the other index.
    """

    def with_it(settings: dict[str, Any]) -> Mapping[str, Any]:
        if _source(settings, folder) is not None:  # another request was first
            return settings
        entry = {"folder": str(folder), "whole": False, "prefix": ""}
        return {**settings, "sources": {**settings["sources"], free_name(_SOURCE, settings["sources"]): entry}}

    name = _source(engine.settings(), folder)
    if name is None:
        engine.update_settings(with_it)
        name = _source(engine.settings(), folder)
    assert name is not None
    return name


def drop_added(engine: Engine, items: Iterable[Item]) -> None:
    """Remove the files of removed items that came over HTTP, unless another item has the same one."""
    folder = folder_of_added(engine)
    if folder is None or not folder.is_dir():
        return
    source = _source(engine.settings(), folder)
    with held(folder):
        for path in {item.path for item in items if item.source == source and item.path}:
            if not engine.count(Where((Condition("source", (str(source),)), Condition("path", (path,))))):
                (folder / path).unlink(missing_ok=True)


def sweep_added(engine: Engine) -> int:
    """Remove files that came over HTTP and that no item names: a process was killed between a file and its item.

    A file stays if any item, of whatever source, has its name or its content, as the items of an index that was moved
    name it by the folder where it was. What was put there under another kind of name stays, too.

    Returns:
        The number of files removed.
    """
    folder = folder_of_added(engine)
    if folder is None or not folder.is_dir():
        return 0
    removed = 0
    with held(folder):
        found = [(path, match) for path in sorted(folder.iterdir()) if (match := _OURS.fullmatch(path.name))]
        for part in in_batches(found, _AT_ONCE):
            names = tuple(path.name for path, _ in part)
            contents = tuple(match["sha256"] for _, match in part if match["sha256"])
            keys = [*engine.keys(Where((Condition("path", names),)))]
            keys += engine.keys(Where((Condition("sha256", contents),))) if contents else []
            items = engine.fetch(sorted({*keys})).values()
            kept = {item.path for item in items} | {item.sha256 for item in items}
            for path, match in part:
                if path.name not in kept and match["sha256"] not in kept:
                    path.unlink()
                    removed += 1
    return removed


def _source(settings: Mapping[str, Any], folder: Path) -> str | None:
    entries = settings["sources"].items()
    return next((name for name, entry in entries if entry.get("folder") == str(folder)), None)
