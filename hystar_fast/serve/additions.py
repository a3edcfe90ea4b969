"""Add a picture that came in a request to the index: its file, its vectors for every view, and its item."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from hystar_fast.data.whole_files import write_whole
from hystar_fast.index.engine import Engine, Item
from hystar_fast.index.sources import free_name
from hystar_fast.serve.answering import Answerer, GenerationGone
from hystar_fast.serve.decoding import media_type
from hystar_fast.serve.live_index import Live
from hystar_fast.serve.schemas import ItemFields

SOURCE, FOLDER = ".added", "added"
"""The source of the files (with a number in a copy of an index), and the folder beside the index that holds them."""


async def add_picture(answerer: Answerer, fields: ItemFields, deadline: float) -> Item:
    """Encode a picture and write it; when it returns, the item is found.

    Raises:
        Problem, or an error of which `problem_of` makes one.
    """

    async def add(live: Live) -> Item:
        views = [*live.stamps]
        vectors = await answerer.vectors(live, views, fields.image, deadline)
        return await answerer.run(_write, answerer.index.engine, live, fields, vectors)

    return await answerer.with_live(add, deadline)


def _write(engine: Engine, live: Live, fields: ItemFields, vectors: dict[str, Any]) -> Item:
    """Write the file, then the item with its vectors; an item of the same id is replaced.

    Raises:
        GenerationGone: the index was switched to another model meanwhile, of which these are no vectors.
    """
    digest, path, source, changed = hashlib.sha256(fields.image).hexdigest(), "", "", 0
    with Image.open(io.BytesIO(fields.image)) as image:
        name = f"{digest}.{media_type(image).removeprefix('image/')}"
    if engine.folder is not None:
        folder = Path(engine.folder).resolve() / FOLDER
        write_whole(folder / name, fields.image)
        path, source, changed = name, _source(engine, folder), (folder / name).stat().st_mtime_ns
    item = Item(
        fields.id or name,
        source,
        path,
        fields.caption or fields.id or name,
        dict(fields.attributes),
        len(fields.image),
        changed,
        digest,
    )
    try:
        engine.upsert([item], {view: vector[None] for view, vector in vectors.items()}, live.generation)
    finally:
        if engine.generation().number != live.generation:
            raise GenerationGone("the index was switched to another generation")
    return item


def _source(engine: Engine, folder: Path) -> str:
    """Return the name of the source whose folder this is; that of an index which was copied or moved is another."""

    def found(settings: Mapping[str, Any]) -> str | None:
        entries = settings["sources"].items()
        return next((name for name, entry in entries if entry.get("folder") == str(folder)), None)

    def with_it(settings: dict[str, Any]) -> Mapping[str, Any]:
        if found(settings) is not None:  # another request was first
            return settings
        entry = {"folder": str(folder), "whole": False, "prefix": ""}
        return {**settings, "sources": {**settings["sources"], free_name(SOURCE, settings["sources"]): entry}}

    name = found(engine.settings())
    if name is None:
        engine.update_settings(with_it)
        name = found(engine.settings())
    assert name is not None
    return name
