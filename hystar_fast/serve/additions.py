"""Add a picture that came in a request to the index: its file, its vectors for every view, and its item."""

from __future__ import annotations

import hashlib
import io
from contextlib import nullcontext
from typing import Any

from PIL import Image

from hystar_fast.data.whole_files import write_whole
from hystar_fast.index.added_files import drop_added, folder_of_added, held, source_of_added
from hystar_fast.index.engine import Engine, Item
from hystar_fast.serve.answering import Answerer, GenerationGone
from hystar_fast.serve.decoding import media_type
from hystar_fast.serve.live_index import Live
from hystar_fast.serve.problems import Problem
from hystar_fast.serve.schemas import ItemFields

_PERHAPS = (
    "the deadline passed before the picture was seen in the index, where it may be now: send the same request again, "
    "which adds it once"
)


async def add_picture(answerer: Answerer, fields: ItemFields, deadline: float) -> Item:
    """Encode a picture and write it; when it returns, the item is found.

    Raises:
        Problem, or an error of which `problem_of` makes one. One that came too late may have been written: the same
            call again replaces the item by itself.
    """

    async def add(live: Live) -> Item:
        views = [*live.stamps]
        vectors = await answerer.vectors(live, views, fields.image, deadline)
        return await answerer.run(_write, answerer.index.engine, live, fields, vectors)

    try:
        return await answerer.with_live(add, deadline)
    except TimeoutError as error:
        raise Problem("deadline_passed", _PERHAPS) from error


def _write(engine: Engine, live: Live, fields: ItemFields, vectors: dict[str, Any]) -> Item:
    """Write the file, then the item with its vectors; an item of the same id is replaced.

    Raises:
        GenerationGone: the index was switched to another model meanwhile, of which these are no vectors.
    """
    digest, path, source, changed = hashlib.sha256(fields.image).hexdigest(), "", "", 0
    with Image.open(io.BytesIO(fields.image)) as image:
        name = f"{digest}.{media_type(image).removeprefix('image/')}"
    folder = folder_of_added(engine)
    with nullcontext() if folder is None else held(folder):
        if folder is not None:
            write_whole(folder / name, fields.image)
            path, source, changed = name, source_of_added(engine, folder), (folder / name).stat().st_mtime_ns
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
        earlier = engine.fetch([item.key])
        try:
            engine.upsert([item], {view: vector[None] for view, vector in vectors.items()}, live.generation)
        finally:
            if engine.generation().number != live.generation:
                raise GenerationGone("the index was switched to another generation")
    drop_added(engine, [old for old in earlier.values() if old.path != path])
    return item
