"""Embeddings of a data set's pictures, read as they are needed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hystar_fast.data.records import ImageSet, Record, Skipped, read_images
from hystar_fast.methods.interface import Method
from hystar_fast.retrieval.embed import embed_images


@dataclass(frozen=True)
class Embedded:
    """The records that could be read, and their embeddings [n, D]; without any, [0, 0]."""

    records: tuple[Record, ...]
    vectors: Tensor


def embed_records(
    method: Method,
    images: ImageSet,
    records: Sequence[Record],
    skipped: list[Skipped],
    *,
    batch_size: int = 128,
    progress: Callable[[int], object] | None = None,
) -> Embedded:
    """Read and embed pictures of a data set, batch by batch.

    Args:
        method: the system.
        images: the data set the records are of.
        records: what to embed.
        skipped: gets an entry for each picture that cannot be read.
        batch_size: images a forward pass.
        progress: called with the number of pictures done after every batch.
    """
    kept: list[Record] = []
    vectors = []
    for batch in embed_batches(method, images, records, skipped, batch_size=batch_size):
        kept += batch.records
        vectors.append(batch.vectors)
        if progress is not None:
            progress(len(batch.records))
    return Embedded(tuple(kept), torch.cat(vectors) if vectors else torch.empty(0, 0))


def embed_batches(
    method: Method, images: ImageSet, records: Sequence[Record], skipped: list[Skipped], *, batch_size: int = 128
) -> Iterator[Embedded]:
    """What `embed_records` gives in one piece, batch by batch; no batch is empty."""
    for rows, pictures in read_images(images, records, method.reader, skipped, batch_size=batch_size):
        vectors = embed_images(method, pictures, batch_size=batch_size)
        yield Embedded(tuple(records[row] for row in rows), vectors.float())
