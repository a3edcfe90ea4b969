"""The adapters of the generations of an index: in its folder, or within an engine that has none."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hystar_fast.index.engine import Engine, Generation
from hystar_fast.models.adapter_format import CONFIG_FILE, TENSOR_FILE, read_description

ADAPTER_FOLDER = "adapter"
WRITTEN = ".adapter"
"""The folder beside an index where an adapter is written before it gets its name."""
_FILES = (TENSOR_FILE, CONFIG_FILE)  # in this order: an adapter without a description is not whole


@contextmanager
def adapter_place(engine: Engine, name: str) -> Iterator[Path]:
    """Give the folder of an adapter while a block runs.

    Raises:
        ValueError: the engine has it not.
    """
    if engine.folder is not None:
        yield engine.folder / name
        return
    with TemporaryDirectory(prefix="hystar-fast-") as folder:
        for file in _FILES:
            content = engine.file(f"{name}/{file}")
            if content is None:
                raise ValueError(f"index must have its adapter, but {engine.uri} has no {name}/{file}")
            (Path(folder) / file).write_bytes(content)
        yield Path(folder)


def keep_adapter(engine: Engine, place: Path) -> tuple[str, bool]:
    """Keep a copy of the adapter in a folder; return its name, and whether it is new: an equal one is taken."""
    if engine.folder is not None:
        kept, is_new = copy_adapter(place, engine.folder)
        return kept.name, is_new
    files = adapter_files(place, "")
    number = 1
    while (held := engine.file(f"{_name(number)}/{CONFIG_FILE}")) not in (None, files[f"/{CONFIG_FILE}"]):
        number += 1
    if held is None:
        for file, content in files.items():
            engine.put_file(f"{_name(number)}{file}", content)
    return _name(number), held is None


def copy_adapter(place: Path, folder: Path) -> tuple[Path, bool]:
    """Copy the adapter in a folder beside others; return as `name_adapter`."""
    shutil.rmtree(folder / WRITTEN, ignore_errors=True)
    shutil.copytree(place, folder / WRITTEN)
    return name_adapter(folder)


def adapter_files(place: Path, name: str) -> dict[str, bytes]:
    """Return the files of an adapter as `Engine.put_file` takes them, under a name."""
    return {f"{name}/{file}": (place / file).read_bytes() for file in _FILES}


def name_adapter(folder: Path) -> tuple[Path, bool]:
    """Give an adapter that was written into `WRITTEN` its name; return its folder, and whether it is new.

    The name is ``adapter``, or ``adapter-2`` and so on where that is another one; an equal one is taken.
    """
    written = folder / WRITTEN
    new = read_description(written)
    number = 1
    while (place := folder / _name(number)).exists():
        try:
            if read_description(place) == new:
                shutil.rmtree(written)
                return place, False
        except ValueError:
            pass
        number += 1
    written.rename(place)
    return place, True


def drop_adapter(engine: Engine, dropped: Generation) -> None:
    """Remove the adapter of a dropped generation, if it was written for it and no other generation uses it."""
    name = dropped.notes.get("adapter")
    if not dropped.notes.get("written") or name in [entry.notes.get("adapter") for entry in engine.generations()]:
        return
    if engine.folder is not None:
        shutil.rmtree(engine.folder / str(name), ignore_errors=True)
        return
    for file in reversed(_FILES):
        engine.delete_file(f"{name}/{file}")


def kept_notes(engine: Engine, notes: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Keep the adapter that the notes of a generation name, from a folder; return the notes with its new name."""
    if "adapter" not in notes:
        return {**notes}
    name, is_new = keep_adapter(engine, folder / str(notes["adapter"]))
    return {**notes, "adapter": name, "written": is_new}


def _name(number: int) -> str:
    return ADAPTER_FOLDER if number == 1 else f"{ADAPTER_FOLDER}-{number}"
