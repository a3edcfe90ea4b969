"""From the fields of a request to its answer: decode, encode, search, and read the items of the hits."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

import torch
from torch import Tensor

from hystar_fast.data.images import Resize, least_side
from hystar_fast.index.combine import Found, combined, softmax_offsets
from hystar_fast.index.engine import Item
from hystar_fast.index.where import Where
from hystar_fast.serve.batches import Batches, Closed, Done
from hystar_fast.serve.decoding import Decoder
from hystar_fast.serve.encoder import Picture
from hystar_fast.serve.live_index import Live, LiveIndex
from hystar_fast.serve.problems import Problem
from hystar_fast.serve.schemas import QueryFields, SearchFields
from hystar_fast.serve.telemetry import Metrics
from hystar_fast.terminal.console import printable

_SEARCHES = 64  # queries of one search of the engine
Result = TypeVar("Result")
_Searched: TypeAlias = "tuple[Found, dict[str, Item]]"


class GenerationGone(Exception):
    """The generation that was searched has been removed from the index."""


@dataclass(frozen=True)
class _Lane:
    """The values that queries must share to be one search of the engine."""

    generation: int
    view: str
    k: int
    where: str | None
    needs_sum: bool


class Answerer:
    """Answers queries; several at a time share the passes of the encoder and the searches of the engine.

    Args:
        index: what is searched.
        decoder: of pictures.
        metrics: gets the time of each step.
        threads: for decoding.
    """

    def __init__(self, index: LiveIndex, decoder: Decoder, metrics: Metrics, *, threads: int) -> None:
        self.index, self.decoder, self._metrics = index, decoder, metrics
        self.pool = ThreadPoolExecutor(threads, thread_name_prefix="decoder")
        self._searches: Batches[Tensor, _Searched] = Batches(self._search, size=_SEARCHES, name="search")

    def close(self) -> None:
        """Finish what waits, and end the threads."""
        self.pool.shutdown(cancel_futures=True)
        self._searches.close()

    async def run(self, work: Callable[..., Result], *arguments: Any) -> Result:
        """Run a function in a thread of the decoders."""
        return await asyncio.get_running_loop().run_in_executor(self.pool, work, *arguments)

    async def search(self, fields: SearchFields, deadline: float) -> dict[str, Any]:
        """Return a `SearchAnswer`.

        Args:
            fields: the query.
            deadline: on the clock of `time.monotonic`.

        Raises:
            Problem, or an error of which `problem_of` makes one.
        """
        return await self.with_live(lambda live: self._answer(live, fields, deadline), deadline)

    async def embed(self, fields: QueryFields, deadline: float) -> dict[str, Any]:
        """Return an `EmbedAnswer`; raises as `search`."""

        async def answer(live: Live) -> dict[str, Any]:
            view = _view(live, fields.view)
            encoded, _ = await self._encode(live, fields, [view], deadline)
            vectors = {part: done.result.tolist() for part, done in encoded[view].items()}
            return {"stamp": live.stamps[view], "view": view, **vectors}

        return await self.with_live(answer, deadline)

    async def vectors(self, live: Live, views: list[str], data: bytes, deadline: float) -> dict[str, Tensor]:
        """Return view -> vector of a picture with its own style."""
        encoded, _ = await self._encode(live, QueryFields.model_validate({"image": data}), views, deadline)
        return {view: parts["image"].result for view, parts in encoded.items()}

    async def style(self, data: bytes, name: str, deadline: float) -> dict[str, Any]:
        """Keep the style of a picture under a name, and return a `StyleAnswer`; raises as `search`."""

        async def answer(live: Live) -> dict[str, Any]:
            view = _styled_view(live, live.default_view)
            images = await self.run(self._prepared, live, [view], data, "image")
            wanted = Picture(images[view], wants_style=True)
            z = (await asyncio.wrap_future(live.encoder.picture(view, wanted, deadline))).result
            await self.run(self.index.put_style, live, name, z)
            return {"name": name, "dimension": len(z)}

        return await self.with_live(answer, deadline)

    async def with_live(self, work: Callable[[Live], Awaitable[Result]], deadline: float) -> Result:
        """Run with one generation from the first step to the last; again if it was exchanged on the way."""
        live = self.index.live
        async with asyncio.timeout(deadline - time.monotonic()):
            try:
                return await work(live)
            except (Closed, GenerationGone):
                if self.index.live is live:
                    raise
                return await work(self.index.live)

    async def _answer(self, live: Live, fields: SearchFields, deadline: float) -> dict[str, Any]:
        view = _view(live, fields.view)
        views = [view, *(other for other in live.stamps if other != view)] if fields.compare else [view]
        encoded, decode = await self._encode(live, fields, views, deadline)
        start = time.monotonic()
        lanes = {
            name: _Lane(live.generation, name, fields.k, fields.where, fields.combine == "softmax") for name in views
        }
        queries = [(lanes[name], done.result) for name in views for done in encoded[name].values()]
        waiting = [asyncio.wrap_future(self._searches.submit(*query, deadline)) for query in queries]
        searched = await asyncio.gather(*waiting)
        search = 1000 * (time.monotonic() - start)
        results = iter(searched)
        hits = {name: _hits({part: next(results) for part in encoded[name]}, fields.k) for name in views}
        passes = [done for parts in encoded.values() for done in parts.values()]
        timing = {
            "decode": decode,
            "queue": max(done.queue for done in passes),
            "encode": max(done.work for done in passes),
            "search": search,
        }
        self._metrics.observe(timing)
        answer: dict[str, Any] = {"stamp": live.stamps[view], "view": view, "hits": hits.pop(view)}
        if fields.compare:
            answer["compared"] = hits
        rounded = {step: round(spent, 2) for step, spent in timing.items()}
        return {**answer, "timing": {**rounded, "batch": max(done.batch for done in passes)}}

    async def _encode(
        self, live: Live, fields: QueryFields, views: list[str], deadline: float
    ) -> tuple[dict[str, dict[str, Done[Tensor]]], float]:
        """Return view -> part -> vector, and the milliseconds of decoding."""
        start = time.monotonic()
        styles: Mapping[str, Tensor] = {}
        if fields.style is not None:
            _styled_view(live, views[0])
            styles = await self._styles(live, fields.style, views)
        if fields.text is not None and not live.takes_words:
            raise Problem("invalid", "text must be left out: the model has no text encoder", field="text")
        images = {}
        if fields.image is not None:
            images = await self.run(self._prepared, live, views, fields.image, "image")
        decode = 1000 * (time.monotonic() - start)
        waiting = {}
        if fields.text is not None:
            waiting["text"] = asyncio.wrap_future(live.encoder.words(fields.text, deadline))
        for view, image in images.items():
            picture = Picture(image, styles.get(view))
            waiting[view] = asyncio.wrap_future(live.encoder.picture(view, picture, deadline))
        done = dict(zip(waiting, await asyncio.gather(*waiting.values()), strict=True))
        return {
            view: {part: done[name] for part, name in (("image", view), ("text", "text")) if name in done}
            for view in views
        }, decode

    async def _styles(self, live: Live, style: str | bytes, views: list[str]) -> Mapping[str, Tensor]:
        """Return z, or the picture whose style is used, for each view that has a style input."""
        styled = [view for view in views if view in live.takes_styles]
        if isinstance(style, bytes):
            return await self.run(self._prepared, live, styled, style, "style")
        z = self.index.style(live, style)
        if z is None:
            raise Problem("invalid", "style must be the name of a registered style, see GET /v1/index", field="style")
        return dict.fromkeys(styled, z)

    def _prepared(self, live: Live, views: list[str], data: bytes, field: str) -> dict[str, Tensor]:
        """Decode a picture and resize it for each view."""
        resizes = {view: live.encoder.methods[view].resize for view in views}
        picture = self.decoder.decode(data, field, least=max(map(least_side, resizes.values())))
        made: list[tuple[Resize, Tensor]] = []
        found = {}
        for view, resize in resizes.items():
            image = next((image for other, image in made if other == resize), None)
            if image is None:
                image = resize(picture)
                made.append((resize, image))
            found[view] = image
        return found

    def _search(self, lane: _Lane, queries: list[Tensor]) -> Sequence[_Searched | Exception]:
        """Search for queries that share everything but their vectors."""
        engine, stacked = self.index.engine, torch.stack(queries)
        where = None if lane.where is None else Where.parse(lane.where)
        field = "where"
        try:
            scores, keys = engine.search(lane.view, stacked, lane.k, where, lane.generation)
            offsets, field = [0.0] * len(queries), "combine"
            if lane.needs_sum:
                offsets = softmax_offsets(engine, lane.view, stacked, where, lane.generation)
        except ValueError as error:
            if lane.generation not in {generation.number for generation in engine.generations()}:
                return [GenerationGone("the generation was removed")] * len(queries)
            if field == "where" and where is None:
                raise
            return [Problem("invalid", str(error), field=field)] * len(queries)
        items = engine.fetch(sorted({key for row in keys for key in row}))
        rows = zip(scores.tolist(), keys, offsets, strict=True)
        return [(Found(row, found, offset), items) for row, found, offset in rows]


def _hits(parts: Mapping[str, Done[_Searched]], k: int) -> list[dict[str, Any]]:
    """Return the `Hit`s of a query; an item that was removed after the search is left out."""
    items = {key: item for done in parts.values() for key, item in done.result[1].items()}
    ranked = combined({part: done.result[0] for part, done in parts.items()}, k)
    return [
        {
            "place": place,
            "key": key,
            "id": printable(items[key].id),
            "caption": printable(items[key].caption),
            "score": round(score, 6),
            "by": part,
        }
        for place, (key, score, part) in enumerate((hit for hit in ranked if hit[0] in items), start=1)
    ]


def _view(live: Live, name: str | None) -> str:
    if name is None:
        return live.default_view
    if name not in live.stamps:
        raise Problem("invalid", f"view must be one of {', '.join(live.stamps)}", field="view")
    return name


def _styled_view(live: Live, view: str) -> str:
    if view not in live.takes_styles:
        raise Problem("invalid", f"style must be left out: view {view!r} has no style input", field="style")
    return view
