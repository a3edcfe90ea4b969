"""From the fields of a request to its answer: decode, encode, search, and read the items of the hits."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeAlias, TypeVar

import torch
from torch import Tensor

from hystar_fast.data.images import Resize, least_side
from hystar_fast.index.combine import Found, combined, softmax_offsets
from hystar_fast.index.engine import IndexDamaged, Item
from hystar_fast.index.query_modality import query_move
from hystar_fast.index.where import Where
from hystar_fast.methods.interface import GALLERY, QUERY, Role
from hystar_fast.methods.similarity import Similarity
from hystar_fast.serve.batches import Batches, Closed, Done, then
from hystar_fast.serve.decoding import Decoder
from hystar_fast.serve.encoder import Picture
from hystar_fast.serve.live_index import Live, LiveIndex
from hystar_fast.serve.problems import Problem
from hystar_fast.serve.schemas import EmbedFields, QueryFields, SearchFields
from hystar_fast.serve.telemetry import Metrics
from hystar_fast.terminal.console import printable

_SEARCHES = 64  # queries of one search of the engine
_LOOK = 0.05  # seconds between two looks for the next generation
Key = TypeVar("Key")
Result = TypeVar("Result")
_Searched: TypeAlias = "tuple[Found, dict[str, Item]]"


class GenerationGone(Exception):
    """The generation that was searched has been removed from the index, or that which was written is not live."""


@dataclass(frozen=True)
class _Lane:
    """The values that queries must share to be one search of the engine."""

    generation: int
    view: str
    k: int
    where: str | None
    needs_sum: bool
    similarity: Similarity


@dataclass(frozen=True)
class _Decoded:
    """The pictures of a query for each view, and the milliseconds from its arrival until they were decoded."""

    pictures: Mapping[str, Picture]
    spent: float


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

    async def embed(self, fields: EmbedFields, deadline: float) -> dict[str, Any]:
        """Return an `EmbedAnswer`; raises as `search`."""

        async def answer(live: Live) -> dict[str, Any]:
            view = _view(live, fields.view)
            encoded = await _results(self._encode(live, fields, [view], deadline, fields.role)[1])
            vectors = {part: done.result.tolist() for (_, part), done in encoded.items()}
            return {"stamp": live.stamps[view], "view": view, **vectors}

        return await self.with_live(answer, deadline)

    async def vectors(self, live: Live, views: list[str], data: bytes, deadline: float) -> dict[str, Tensor]:
        """Return view -> vector of a gallery picture with its own style."""
        fields = QueryFields.model_validate({"image": data})
        encoded = await _results(self._encode(live, fields, views, deadline, GALLERY)[1])
        return {view: done.result for (view, _), done in encoded.items()}

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
        """Run with one generation from the first step to the last; again if it was exchanged on the way.

        Where the index has no longer the generation that is served, the next one is waited for: its model is being
        loaded.
        """
        async with asyncio.timeout(deadline - time.monotonic()):
            while True:
                live = self.index.live
                try:
                    return await work(live)
                except Closed:
                    if self.index.live is live:
                        raise
                except GenerationGone:
                    while self.index.live is live:
                        await asyncio.sleep(_LOOK)

    async def _answer(self, live: Live, fields: SearchFields, deadline: float) -> dict[str, Any]:
        view = _view(live, fields.view)
        views = [view, *(other for other in live.stamps if other != view)] if fields.compare else [view]
        moves = {} if fields.modality is None else {name: _move(live, name, fields.modality) for name in views}
        decoding, encoding = self._encode(live, fields, views, deadline)
        searching = {}
        for (name, part), vector in encoding.items():
            lane = _Lane(
                live.generation, name, fields.k, fields.where, fields.combine == "softmax", live.similarity(name)
            )
            move = moves.get(name) if part == "image" else None
            searching[name, part] = then(vector, partial(self._submit, lane, deadline, move))
        searched = await _results(searching)
        passes = [vector.result() for vector in encoding.values()]
        timing = {
            "decode": decoding.result().spent,
            "queue": max(done.queue for done in passes),
            "encode": max(done.work for done in passes),
            "search": max(done.queue + done.work for done in searched.values()),
        }
        self._metrics.observe(timing)
        hits = {
            name: _hits({part: searched[of, part] for of, part in searched if of == name}, fields.k) for name in views
        }
        answer: dict[str, Any] = {"stamp": live.stamps[view], "view": view, "hits": hits.pop(view)}
        if fields.compare:
            answer["compared"] = hits
        rounded = {step: round(spent, 2) for step, spent in timing.items()}
        return {**answer, "timing": {**rounded, "batch": max(done.batch for done in passes)}}

    def _submit(
        self, lane: _Lane, deadline: float, move: Callable[[Tensor], Tensor] | None, encoded: Done[Tensor]
    ) -> Future[Done[_Searched]]:
        return self._searches.submit(lane, encoded.result if move is None else move(encoded.result), deadline)

    def _encode(
        self, live: Live, fields: QueryFields, views: list[str], deadline: float, role: Role = QUERY
    ) -> tuple[Future[_Decoded], dict[tuple[str, str], Future[Done[Tensor]]]]:
        """Start to decode and to encode; return (view, part) -> the future of its vector."""
        styles: Mapping[str, Tensor] = {}
        if fields.style is not None:
            _styled_view(live, views[0])
            if not isinstance(fields.style, bytes):
                styles = self._named_style(live, fields.style, views)
        if fields.text is not None and not {*views} <= live.takes_words:
            raise Problem("invalid", "text must be left out: the model has no text encoder", field="text")
        decoding: Future[_Decoded] = Future()
        encoding = {}
        if fields.image is None:
            decoding.set_result(_Decoded({}, 0.0))
        else:
            decoding = self.pool.submit(self._decode, live, fields, views, styles, time.monotonic())
        for view in views:
            if fields.image is not None:
                encoding[view, "image"] = then(decoding, partial(_submit_picture, live, view, deadline, role))
            if fields.text is not None:
                encoding[view, "text"] = live.encoder.words(view, fields.text, deadline)
        return decoding, encoding

    def _named_style(self, live: Live, name: str, views: list[str]) -> Mapping[str, Tensor]:
        """Return z for each view that has a style input."""
        z = self.index.style(live, name)
        if z is None:
            raise Problem("invalid", "style must be the name of a registered style, see GET /v1/index", field="style")
        return dict.fromkeys((view for view in views if view in live.takes_styles), z)

    def _decode(
        self, live: Live, fields: QueryFields, views: list[str], styles: Mapping[str, Tensor], start: float
    ) -> _Decoded:
        """Decode the picture, and that whose style is used, for each view."""
        if isinstance(fields.style, bytes):
            styled = [view for view in views if view in live.takes_styles]
            styles = self._prepared(live, styled, fields.style, "style")
        assert fields.image is not None
        images = self._prepared(live, views, fields.image, "image")
        pictures = {view: Picture(image, styles.get(view)) for view, image in images.items()}
        return _Decoded(pictures, 1000 * (time.monotonic() - start))

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
            scores, keys = engine.search(lane.view, stacked, lane.k, where, lane.generation, similarity=lane.similarity)
            offsets, field = [0.0] * len(queries), "combine"
            if lane.needs_sum:
                offsets = softmax_offsets(engine, lane.view, stacked, where, lane.generation)
        except ValueError as error:
            if lane.generation not in {generation.number for generation in engine.generations()}:
                return [GenerationGone("the generation was removed")] * len(queries)
            if isinstance(error, IndexDamaged) or (field == "where" and where is None):
                raise
            return [Problem("invalid", str(error), field=field)] * len(queries)
        items = engine.fetch(sorted({key for row in keys for key in row}))
        rows = zip(scores.tolist(), keys, offsets, strict=True)
        return [(Found(row, found, offset), items) for row, found, offset in rows]


def _submit_picture(live: Live, view: str, deadline: float, role: Role, decoded: _Decoded) -> Future[Done[Tensor]]:
    return live.encoder.picture(view, replace(decoded.pictures[view], role=role), deadline)


async def _results(futures: Mapping[Key, Future[Result]]) -> dict[Key, Result]:
    """Wait for futures of threads; if one fails or the caller is cancelled, all are cancelled."""
    try:
        return dict(zip(futures, await asyncio.gather(*map(asyncio.wrap_future, futures.values())), strict=True))
    except BaseException:
        for future in futures.values():
            future.cancel()
        raise


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


def _move(live: Live, view: str, modality: str) -> Callable[[Tensor], Tensor]:
    try:
        return query_move(live.encoder.methods[view], modality)
    except ValueError as error:
        raise Problem("invalid", str(error), field="modality") from error


def _styled_view(live: Live, view: str) -> str:
    if view not in live.takes_styles:
        raise Problem("invalid", f"style must be left out: view {view!r} has no style input", field="style")
    return view
