"""Search an index with a picture, with words, or with both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from hystar_fast.data.images import least_side, load_image, thumbnail
from hystar_fast.index.combine import Found, combined, softmax_offsets
from hystar_fast.index.engine import Engine, Generation, IndexDamaged, Item
from hystar_fast.index.generation_methods import open_view
from hystar_fast.index.open_index import open_engine
from hystar_fast.index.query_modality import query_move
from hystar_fast.index.sources import picture_of
from hystar_fast.index.where import Where
from hystar_fast.methods.device import on_device, select_device
from hystar_fast.methods.interface import Method
from hystar_fast.retrieval.answer_grid import PAGE_TILE, Answer, answer_page
from hystar_fast.retrieval.embed import check_finite, embed_texts
from hystar_fast.retrieval.joint import COMBINATIONS

IMAGE, TEXT = "image", "text"


@dataclass(frozen=True)
class Query:
    """A picture, words, or both.

    Attributes:
        picture: a picture file.
        text: words.
        style: a picture file whose style the picture is encoded with, instead of its own.
        modality: the style of the picture by name, such as "sketch", or a row of an evaluation, such as "sketch [mean
            shift]": its vector is moved to the gallery's style, as `Method.convert` does. Empty leaves it as it is.
    """

    picture: Path | None = None
    text: str = ""
    style: Path | None = None
    modality: str = ""

    def __post_init__(self) -> None:
        if self.picture is None and not self.text.strip():
            raise ValueError(f"query must hold a picture or a word, got {self.text!r}")
        if self.picture is None and self.style is not None:
            raise ValueError("style must belong to a picture, got a query of words alone")


@dataclass(frozen=True)
class Hit:
    """One answer.

    Attributes:
        rank: 1 is best.
        key, id, caption: of the item.
        score: cosine similarity, or that of the method; with combine="softmax", log(score) / 100.
        by: what it is similar to, "image" or "text".
    """

    rank: int
    key: str
    id: str
    caption: str
    score: float
    by: str


@dataclass(frozen=True)
class Searcher:
    """An index and the method that made one view of it.

    Attributes:
        engine: of the index.
        generation: the one that is searched.
        view: of the generation.
        method: that made the vectors of the view.
    """

    engine: Engine
    generation: Generation
    view: str
    method: Method

    @classmethod
    def open(cls, uri: str | Path, *, view: str | None = None, device: str = "cpu") -> Searcher:
        """Open an index with the method that made it.

        Args:
            uri: of the index.
            view: by default the first of the live generation.
            device: "auto", "cpu" or "cuda".

        Raises:
            ValueError: the index or its adapter is missing or damaged, or has no such view; StampMismatch if the
                adapter or the weights are others than the index was made with.
        """
        engine = open_engine(uri)
        generation = engine.generation()
        view = generation.views[0] if view is None else view
        if view not in generation.views:
            raise ValueError(f"view must be one of {', '.join(generation.views)}, got {view!r}")
        return cls(engine, generation, view, on_device(open_view(engine, generation, view), select_device(device)))

    def search(
        self, queries: Sequence[Query], top: int, *, combine: str = COMBINATIONS[0], where: Where | None = None
    ) -> list[list[Hit]]:
        """Return the `top` answers to each query. All pictures are encoded together, each with its own style.

        An item's score for a picture and words together is the larger of both. The first `top` of these are among the
        first `top` of each, so two searches are exact.

        Args:
            queries: any number.
            top: answers a query.
            combine: "similarity", or "softmax" over all pictures that the filter keeps; see
                `hystar_fast.retrieval.joint`.
            where: keeps only the items that match it.

        Raises:
            ValueError: a picture cannot be read, the method has no style or no text encoder, or an argument is wrong.
        """
        if combine not in COMBINATIONS:
            raise ValueError(f"combine must be one of {COMBINATIONS}, got {combine!r}")
        similarity = self.method.similarity
        if combine == "softmax" and not similarity.is_cosine:
            raise ValueError(f"combine must be 'similarity' for similarity {similarity.name!r}, got {combine!r}")
        pictured = [place for place, query in enumerate(queries) if query.picture is not None]
        worded = [place for place, query in enumerate(queries) if query.text.strip()]
        version = self.engine.version()
        found: list[dict[str, Found]] = [{} for _ in queries]
        if pictured:
            vectors = self.encode_pictures([queries[place] for place in pictured])
            self._collect(found, pictured, vectors, IMAGE, top, combine, where)
        if worded:
            vectors = self.encode_texts([queries[place].text for place in worded])
            self._collect(found, worded, vectors, TEXT, top, combine, where)
        ranked = [combined(parts, top) for parts in found]
        answers = [self._hits(best) for best in ranked]
        lost = any(len(hits) < len(best) for hits, best in zip(answers, ranked, strict=True))
        if lost and version == self.engine.version():
            raise IndexDamaged(
                f"{self.engine.uri} is damaged: vectors belong to no item; see `hystar-fast index verify`"
            )
        return answers

    def _collect(
        self,
        found: list[dict[str, Found]],
        places: Sequence[int],
        vectors: Tensor,
        by: str,
        top: int,
        combine: str,
        where: Where | None,
    ) -> None:
        number = self.generation.number
        scores, keys = self.engine.search(self.view, vectors, top, where, number, similarity=self.method.similarity)
        offsets = [0.0] * len(places)
        if combine == "softmax":
            offsets = softmax_offsets(self.engine, self.view, vectors, where, number)
        for place, row, names, offset in zip(places, scores.tolist(), keys, offsets, strict=True):
            found[place][by] = Found(row, names, offset)

    def _hits(self, best: Sequence[tuple[str, float, str]]) -> list[Hit]:
        items = self.engine.fetch([key for key, _, _ in best])
        kept = [(items[key], score, by) for key, score, by in best if key in items]  # the rest was just removed
        return [
            Hit(rank, item.key, item.id, item.caption, score, by)
            for rank, (item, score, by) in enumerate(kept, start=1)
        ]

    @torch.no_grad()
    def encode_pictures(self, queries: Sequence[Query]) -> Tensor:
        """Return unit vectors [n, D] of the pictures of queries, each with its own or the given style.

        Raises:
            ValueError: a picture cannot be read, or a style is given and the method has none.
            FloatingPointError: a vector is not finite.
        """
        images = torch.stack([self._read(query.picture) for query in queries if query.picture is not None])
        style = None
        if any(query.style is not None for query in queries):
            sources = [query.picture if query.style is None else query.style for query in queries]
            style = self.method.style(torch.stack([self._read(place) for place in sources if place is not None]))
            if style is None:
                raise ValueError(f"style must be left out for {self.method.name!r}, which has no style")
        vectors = self.method.encode_query(images, style).float()
        if self.method.similarity.is_cosine:
            vectors = F.normalize(vectors, dim=-1)
        check_finite(self.method, vectors, [str(query.picture) for query in queries])
        moves = [query_move(self.method, query.modality) if query.modality else None for query in queries]
        parts = zip(vectors.split(1), moves, strict=True)
        return torch.cat([vector if move is None else move(vector) for vector, move in parts])

    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """Return unit vectors [n, D] of words.

        Raises:
            ValueError: the method has no text encoder.
        """
        vectors = embed_texts(self.method, texts)
        if vectors is None:
            raise ValueError(f"method must have a text encoder for a query of words, got {self.method.name!r}")
        return vectors

    def _read(self, place: Path) -> Tensor:
        return self.method.resize(load_image(place, least=least_side(self.method.resize)))

    def draw(self, hits: Sequence[Hit], query: Query) -> Image.Image:
        """Draw a query and its answers as one picture; an answer whose file has gone is an empty tile."""
        settings, items = self.engine.settings(), self.engine.fetch([hit.key for hit in hits])

        def shown(item: Item | None) -> Tensor | None:
            try:
                return None if item is None else thumbnail(picture_of(settings, item, least=2 * PAGE_TILE), PAGE_TILE)
            except ValueError:
                return None

        answers = [Answer(shown(items.get(hit.key)), caption=hit.caption, score=hit.score) for hit in hits]
        title = f"First {len(hits)} of {self.engine.count()}"
        if query.picture is None:
            return answer_page(None, query.text, answers, title)
        name = f"{query.picture.name}, {query.text}" if query.text.strip() else query.picture.name
        return answer_page(thumbnail(load_image(query.picture, least=2 * PAGE_TILE), PAGE_TILE), name, answers, title)
