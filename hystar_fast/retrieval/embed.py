"""Embed images, texts and the records of a data set with a method, in batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hystar_fast.data.image_set import ImageSet, Record, Skipped, read_images
from hystar_fast.methods.interface import GALLERY, Method, Role


@dataclass(frozen=True)
class Embedded:
    """Records that could be read, and their embeddings [n, D]; [0, 0] if there are none."""

    records: tuple[Record, ...]
    vectors: Tensor


@torch.no_grad()
def embed_images(
    method: Method,
    images: Tensor,
    *,
    role: Role = GALLERY,
    batch_size: int = 128,
    progress: Callable[[int], object] | None = None,
) -> Tensor:
    """Return unit vectors [n, D] of images [n, 3, H, W] (uint8, or floating point in [0, 1]).

    Args:
        method: the encoder; it is switched to evaluation mode.
        images: all images, as `method.resize` makes them.
        role: whether they are queries or gallery pictures, see `Method.encode_query`.
        batch_size: images a forward pass.
        progress: called with the number of images after every batch.

    Raises:
        ValueError: `images` is not [n, 3, H, W] with n at least 1.
    """
    _check_images(images)
    method.train(False)
    parts = []
    for batch in images.split(batch_size):
        parts.append(method.encode(batch, role))
        if progress is not None:
            progress(len(batch))
    return torch.cat(parts)


@torch.no_grad()
def embed_styles(method: Method, images: Tensor, *, batch_size: int = 128) -> Tensor | None:
    """Return style vectors [n, d] of images, or None if the method has no style. Training does not change them."""
    _check_images(images)
    parts = []
    for batch in images.split(batch_size):
        part = method.style(batch)
        if part is None:
            return None
        parts.append(part)
    return torch.cat(parts)


@torch.no_grad()
def embed_texts(method: Method, texts: Sequence[str], *, batch_size: int = 256) -> Tensor | None:
    """Return unit vectors [n, D] of texts, or None if the method has no text encoder or there is no text.

    Raises:
        FloatingPointError: an embedding is not finite; the message names the text.
    """
    method.train(False)
    parts = []
    for start in range(0, len(texts), batch_size):
        part = method.encode_text(texts[start : start + batch_size])
        if part is None:
            return None
        check_finite(method, part, texts[start:])
        parts.append(part)
    return torch.cat(parts) if parts else None


def embed_records(
    method: Method,
    images: ImageSet,
    records: Sequence[Record],
    skipped: list[Skipped],
    *,
    role: Role = GALLERY,
    batch_size: int = 128,
    progress: Callable[[int], object] | None = None,
) -> Embedded:
    """Read and embed pictures of a data set.

    Args:
        method: the encoder.
        images: the data set of the records.
        records: what to embed.
        skipped: gets an entry for each picture that cannot be read.
        role: whether the pictures are queries or of the gallery, see `Method.encode_query`.
        batch_size: images a forward pass.
        progress: called with the number of pictures after every batch.

    Raises:
        FloatingPointError: an embedding is not finite; the message names the picture.
    """
    kept: list[Record] = []
    vectors = []
    for batch in embed_batches(method, images, records, skipped, role=role, batch_size=batch_size):
        kept += batch.records
        vectors.append(batch.vectors)
        if progress is not None:
            progress(len(batch.records))
    return Embedded(tuple(kept), torch.cat(vectors) if vectors else torch.empty(0, 0))


def embed_batches(
    method: Method,
    images: ImageSet,
    records: Sequence[Record],
    skipped: list[Skipped],
    *,
    role: Role = GALLERY,
    batch_size: int = 128,
) -> Iterator[Embedded]:
    """Read and embed pictures as `embed_records` does, and yield each batch; no batch is empty."""
    for rows, pictures in read_images(images, records, method.resize, skipped, batch_size=batch_size):
        found = tuple(records[row] for row in rows)
        vectors = embed_images(method, pictures, role=role, batch_size=batch_size).float()
        check_finite(method, vectors, [record.path for record in found])
        yield Embedded(found, vectors)


def check_finite(method: Method, vectors: Tensor, names: Sequence[str]) -> None:
    """Raise FloatingPointError with the first name whose vector is not finite."""
    bad = (~vectors.isfinite().all(dim=1)).nonzero().flatten().tolist()
    if bad:
        raise FloatingPointError(
            f"embeddings of {method.name!r} must be finite, got NaN or inf for {names[bad[0]]}: its adapter has "
            "diverged, or its weights are damaged"
        )


def _check_images(images: Tensor) -> None:
    if images.ndim != 4 or images.shape[1] != 3 or not len(images):
        raise ValueError(f"images must be [n, 3, H, W] with n at least 1, got {tuple(images.shape)}")
