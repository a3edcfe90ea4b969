"""Open the index of a name, whatever engine it has; replace one as a whole."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch.nn import functional as F

from hystar_fast.data.read_ahead import in_batches
from hystar_fast.data.text_files import parse_json
from hystar_fast.index.address import without_password
from hystar_fast.index.engine import ADAPTED, FROZEN, LARGEST_BATCH, Engine, IndexDamaged, Item
from hystar_fast.index.generation_methods import Made
from hystar_fast.index.kept_adapters import ADAPTER_FOLDER, adapter_files
from hystar_fast.index.local import INDEX_FILE, LocalEngine
from hystar_fast.index.milvus import MilvusEngine
from hystar_fast.index.milvus_address import MILVUS
from hystar_fast.index.postgres import PostgresEngine
from hystar_fast.index.postgres_address import SCHEMES as POSTGRES
from hystar_fast.index.stamp import Stamp

LOCAL = "local:"
COPY_OF = "copy_of"
"""The setting of a copy that is not finished: its source."""
_ADDRESS = re.compile(r"[a-z+]+://|(postgres(ql)?|milvus[a-z+]*):")
_OLD = "index"
REPLACEMENT = ".replacement"
"""The folder in that of an index where the one that replaces it is made."""


def is_on_server(uri: str | Path) -> bool:
    """Return whether a name is the address of an index in an engine without a folder."""
    return str(uri).startswith((MILVUS, *POSTGRES))


def _kind(uri: str | Path) -> type[MilvusEngine] | type[PostgresEngine]:
    return MilvusEngine if str(uri).startswith(MILVUS) else PostgresEngine


def folder_of_uri(uri: str | Path) -> Path:
    """Return the folder of a local index.

    Raises:
        ValueError: the name has the form of an address.
    """
    text = str(uri)
    if _ADDRESS.match(text):
        raise ValueError(f"index must be a folder or local:PATH, got {without_password(text)}")
    return Path(text.removeprefix(LOCAL))


def has_index(uri: str | Path) -> bool:
    """Return whether there is an index; in a folder of this or of the first format."""
    if is_on_server(uri):
        if str(uri).startswith(MILVUS):
            return MilvusEngine.exists(str(uri))
        try:
            PostgresEngine(str(uri)).close()
        except ValueError:
            return False
        return True
    folder = folder_of_uri(uri)
    return (folder / INDEX_FILE).is_file() or (folder / _OLD / "index.json").is_file()


def open_engine(uri: str | Path) -> Engine:
    """Open an index.

    Args:
        uri: a folder, ``local:PATH``, ``postgresql://HOST/DATABASE?index=NAME``, ``milvus:FILE.db`` or
            ``milvus:http://HOST:PORT/NAME``.

    Raises:
        ValueError: there is none, or it is damaged, or a copy that was stopped. EngineUnavailable if its server cannot
            be reached.
    """
    engine = open_unfinished(uri)
    source = engine.settings().get(COPY_OF)
    if source is not None:
        engine.close()
        raise ValueError(
            f"index must be whole, but the copy of {source} to {engine.uri} was stopped: go on with "
            f"`hystar-fast index copy {source} {engine.uri}`"
        )
    return engine


def open_unfinished(uri: str | Path) -> Engine:
    """Open an index, also one that is a copy which was stopped; else as `open_engine`."""
    if is_on_server(uri):
        return _kind(uri)(str(uri))
    folder = folder_of_uri(uri)
    if (folder / INDEX_FILE).is_file():
        return LocalEngine(folder)
    if (folder / _OLD / "index.json").is_file():
        return _open_first_format(folder)
    raise ValueError(
        f"index must be a folder that `hystar-fast embed`, `index create` or `demo` wrote, got {folder}, which has no "
        f"{INDEX_FILE}. First index your pictures: hystar-fast embed FOLDER --output {folder}"
    )


@contextmanager
def folder_for(uri: str | Path) -> Iterator[Path]:
    """Give a folder for the adapter of an index that `create_engine` is to make: its own, or for a block alone."""
    if not is_on_server(uri):
        yield folder_of_uri(uri)
        return
    with TemporaryDirectory(prefix="hystar-fast-") as folder:
        yield Path(folder)


def create_engine(
    uri: str | Path, made: Made, settings: Mapping[str, Any] | None = None, folder: Path | None = None
) -> Engine:
    """Make an empty index with one generation.

    Args:
        uri: as `open_engine` takes it.
        made: of the generation.
        settings: of the index.
        folder: where its adapter was written, see `folder_for`.

    Raises:
        ValueError: there is one already.
    """
    if is_on_server(uri):
        name = made.notes.get("adapter")
        files = {} if name is None or folder is None else adapter_files(folder / str(name), str(name))
        return _kind(uri).create(str(uri), made.stamps, made.notes, settings, files)
    return LocalEngine.create(folder_of_uri(uri), made.stamps, made.notes, settings)


def replace_index(
    folder: Path, made: Made, fill: Callable[[Engine], None], settings: Mapping[str, Any] | None = None
) -> None:
    """Fill a new index, and put it in the place of the one in a folder in one transaction; that one may be in use.

    If it is stopped, the old index is unchanged; a second call with the same stamps and settings goes on.

    Args:
        folder: of the index.
        made: of its first generation.
        fill: called with the new index.
        settings: of the new index.
    """
    place = folder / REPLACEMENT
    new = _unfinished(place, made, settings)
    try:
        fill(new)
        if not _took_over(folder, new):
            new.close()
            for file in folder.glob(f"{INDEX_FILE}*"):  # damaged, so nobody uses it
                file.unlink()
            (place / INDEX_FILE).replace(folder / INDEX_FILE)
    finally:
        new.close()
    shutil.rmtree(place)


def _took_over(folder: Path, new: LocalEngine) -> bool:
    """Put an index into the file of an older one; return whether there is one that can be read."""
    if not (folder / INDEX_FILE).is_file():
        return False
    try:
        old = LocalEngine(folder)
    except IndexDamaged:
        return False
    try:
        old.take_over(new)
    finally:
        old.close()
    return True


def _unfinished(place: Path, made: Made, settings: Mapping[str, Any] | None) -> LocalEngine:
    """Return the index that an earlier call was filling, if it was for the same, or a new one."""
    if (place / INDEX_FILE).is_file():
        try:
            engine = LocalEngine(place)
            if engine.stamps() == made.stamps and engine.settings() == {**engine.settings(), **(settings or {})}:
                return engine
            engine.close()
        except ValueError:
            pass
    shutil.rmtree(place, ignore_errors=True)
    return LocalEngine.create(place, made.stamps, made.notes, settings)


def _open_first_format(folder: Path) -> LocalEngine:
    """Read an index of format 1, two files that did not say which model made them, into memory; it cannot be written.

    Raises:
        ValueError: a file is damaged.
    """
    try:
        meta = parse_json((folder / _OLD / "index.json").read_text(encoding="utf-8"))
        vectors = F.normalize(load_file(folder / _OLD / "index.safetensors")["embeddings"].float(), dim=-1)
        about, ids = meta["about"], meta["ids"]
        captions = about.get("captions", ids)
        if meta["format"] != 1 or vectors.ndim != 2 or not len(vectors) == len(ids) == len(captions):
            raise ValueError("its parts do not belong together")
        if len({*ids}) < len(ids) or not all(isinstance(text, str) for text in (*ids, *captions)):
            raise ValueError("its names are no different strings")
        is_frozen = "config" in about
        view = FROZEN if is_frozen else ADAPTED
        notes = {"frozen": about["config"]} if is_frozen else {"adapter": ADAPTER_FOLDER}
        notes["warning"] = (
            f"{folder} is an index of format 1, which can only be read: index again with `hystar-fast embed`"
        )
        values = {"format": 1, "dimension": vectors.shape[1]}
        if is_frozen:
            values |= {f"fingerprints.{name}": value for name, value in about["fingerprints"].items()}
        is_emoji = about.get("source") == "emoji"
        source = {"emoji": about["gallery"]} if is_emoji else {"folder": about["source"], "whole": True, "prefix": ""}
        engine = LocalEngine.in_memory(folder, {view: Stamp(values)}, notes, {"sources": {"pictures": source}})
        items = [Item(i, "pictures", "" if is_emoji else i, c) for i, c in zip(ids, captions, strict=True)]
        for part, rows in zip(in_batches(items, LARGEST_BATCH), vectors.split(LARGEST_BATCH), strict=True):
            engine.upsert(part, {view: rows})
        engine.make_read_only()
        return engine
    except (OSError, SafetensorError, KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{folder / _OLD} holds a damaged index of format 1: {error}") from error
