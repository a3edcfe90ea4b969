"""Micro-batches: requests that wait at the same time are encoded in one pass, each with a style of its own.

The style is an argument of `Method.encode_query`, one row a picture, so requests of different styles need no pass of
their own, and nothing is set on the model between two requests. Pictures that are added to the index are encoded as
gallery pictures, in a pass of their own where queries wait at the same time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass

import torch
from torch import Tensor

from hystar_fast.methods.device import BATCH_ON_CPU
from hystar_fast.methods.interface import GALLERY, QUERY, Method, Role
from hystar_fast.serve.batches import Batches, Done

_PICTURE = 3  # dimensions of a picture; a style vector has one
_WORDS = "words"


class NotFinite(Exception):
    """The model returned NaN or inf for a request."""


class NoStyle(ValueError):
    """The method has no style input."""


class NoText(ValueError):
    """The method has no text encoder."""


@dataclass(frozen=True, eq=False)
class Picture:
    """A picture to encode.

    Attributes:
        image: [3, H, W] as `method.resize` makes it.
        style: z [d], or a picture [3, H, W] whose style is to be used; None for the picture's own style.
        wants_style: return the style z of `image` instead of its embedding.
        role: whether it is a query or joins the gallery.
    """

    image: Tensor
    style: Tensor | None = None
    wants_style: bool = False
    role: Role = QUERY


class Encoder:
    """Encodes pictures and words that wait at the same time in one pass each.

    Args:
        methods: view -> method.
        batch: most requests of a pass.
        workers: number of encoding threads; all use the same methods.
        threads: threads of torch for each of them.
        max_wait: see `Batches`.
        on_batch: called with the number of requests of each pass.
    """

    def __init__(
        self,
        methods: Mapping[str, Method],
        *,
        batch: int = BATCH_ON_CPU,
        workers: int = 1,
        threads: int = 1,
        max_wait: float = 0.0,
        on_batch: Callable[[int], object] = lambda size: None,
    ) -> None:
        self.methods, self._threads = methods, threads
        for method in methods.values():
            method.train(False)
        self._batches: Batches[Picture | str, Tensor] = Batches(
            self._encode, size=batch, workers=workers, max_wait=max_wait, on_batch=on_batch, name="encoder"
        )

    def picture(self, view: str, picture: Picture, deadline: float = math.inf) -> Future[Done[Tensor]]:
        """Queue a picture, see `Batches.submit`.

        Returns:
            A future of a unit vector [D], or of z [d]. It raises NotFinite, NoStyle, or what the method raised for this
            picture alone.
        """
        return self._batches.submit(view, picture, deadline)

    def words(self, view: str, text: str, deadline: float = math.inf) -> Future[Done[Tensor]]:
        """Queue words, see `Batches.submit`; the future of a unit vector [D] raises NotFinite or NoText."""
        return self._batches.submit((_WORDS, view), text, deadline)

    @property
    def depth(self) -> int:
        """The number of requests that wait."""
        return self._batches.depth

    def close(self) -> None:
        """Take no more requests, encode those that wait, and end the threads."""
        self._batches.close()

    def _encode(self, lane: Hashable, values: list) -> Sequence[Tensor | Exception]:
        if torch.get_num_threads() != self._threads:
            torch.set_num_threads(self._threads)
        with torch.inference_mode():
            if isinstance(lane, tuple):
                vectors = _encode_words(self.methods[lane[1]], values)
            else:
                vectors = _encode_pictures(self.methods[str(lane)], values)
            finite = torch.stack([vector.isfinite().all() for vector in vectors]).tolist()
        error = NotFinite("the model returned NaN or inf for this request")
        return [vector if is_finite else error for vector, is_finite in zip(vectors, finite, strict=True)]


def _encode_words(method: Method, texts: list[str]) -> list[Tensor]:
    vectors = method.encode_text(texts)
    if vectors is None:
        raise NoText(f"text must be left out: {method.name!r} has no text encoder")
    return [*vectors.float()]


def _encode_pictures(method: Method, pictures: list[Picture]) -> list[Tensor]:
    """Return the embedding or the style of each picture, by at most one call of `style` and one of `encode` a role."""
    embedded = [picture for picture in pictures if not picture.wants_style]
    is_mixed = any(picture.style is not None for picture in embedded)  # if not, the method computes every style itself
    sources = {id(entry): source for entry in pictures if (source := _style_source(entry, is_mixed)) is not None}
    styles: dict[int, Tensor] = {}
    if sources:
        found = method.style(torch.stack([*sources.values()]))
        if found is None:
            raise NoStyle(f"style must be left out: {method.name!r} has no style input")
        styles = dict(zip(sources, found.float(), strict=True))
    answers = {entry: styles[id(entry)] for entry in pictures if entry.wants_style}
    roles: tuple[Role, ...] = (QUERY, GALLERY)
    for role in roles:
        entries = [entry for entry in embedded if entry.role == role]
        if entries:
            z = torch.stack([styles.get(id(entry), entry.style) for entry in entries]) if is_mixed else None  # type: ignore[misc]
            vectors = method.encode(torch.stack([entry.image for entry in entries]), role, z).float()
            answers |= zip(entries, vectors, strict=True)
    return [answers[entry] for entry in pictures]


def _style_source(picture: Picture, is_mixed: bool) -> Tensor | None:
    """Return the picture whose style `Method.style` must read; None where z is given, or comes from the same pass."""
    if picture.wants_style:
        return picture.image
    if picture.style is None:
        return picture.image if is_mixed else None
    return picture.style if picture.style.ndim == _PICTURE else None
