"""Embed the pictures of an index with another model, in a new generation beside the live one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from hystar_fast.data.image_set import Skipped
from hystar_fast.data.images import Resize
from hystar_fast.data.read_ahead import in_batches, read_ahead
from hystar_fast.index.engine import ADAPTED, FROZEN, Engine, Item
from hystar_fast.index.generation_methods import Encoder, Made, encoder_of, keep_generation
from hystar_fast.index.picture_files import pixels_of, read_content, reason_of
from hystar_fast.index.sources import file_of, picture_of
from hystar_fast.methods.interface import Method

_PART = 512  # items that are looked up together


@dataclass
class Reembedded:
    """A generation, the number of pictures that were encoded for it now, and those that could not be."""

    generation: int
    encoded: int = 0
    skipped: list[Skipped] = field(default_factory=list)


def reembed(
    engine: Engine,
    method: Method,
    device: torch.device,
    *,
    progress: Callable[[int, int], object] | None = None,
) -> Reembedded:
    """Fill a generation of another model; searches go on in the live one until `Engine.switch`.

    A generation of the same model that is not whole is continued, also after a kill; every batch is kept.

    Args:
        engine: of the index.
        method: the other model: a trained method, or the frozen backbone.
        device: where it encodes.
        progress: called after every batch with the pictures done and their total.

    Raises:
        ValueError: the index has no place for the adapter, or is of this model already.
        FloatingPointError: a picture has an embedding that is not finite.
    """
    live = engine.generation()
    made = keep_generation(engine, method, with_frozen={ADAPTED, FROZEN} <= {*live.views})
    number = _generation(engine, made)
    return fill_generation(engine, number, encoder_of(engine, device, number), progress=progress)


def fill_generation(
    engine: Engine,
    number: int,
    open_encoder: Callable[[], Encoder],
    *,
    progress: Callable[[int, int], object] | None = None,
) -> Reembedded:
    """Encode the pictures that have no vectors in a generation; the encoder is opened if there are any."""
    done = Reembedded(number)
    keys = engine.missing(number)
    if not keys:
        return done
    encoder = open_encoder()
    for batch in in_batches(_decoded(engine, keys, encoder, done.skipped), encoder.batch_size):
        items = [item for item, _ in batch]
        vectors = encoder.encode(torch.stack([pixels for _, pixels in batch]), [item.id for item in items])
        engine.upsert(items, vectors, number)
        done.encoded += len(batch)
        if progress is not None:
            progress(done.encoded, len(keys))
    return done


def _decoded(
    engine: Engine, keys: Sequence[str], encoder: Encoder, skipped: list[Skipped]
) -> Iterator[tuple[Item, Tensor]]:
    settings = engine.settings()
    for part in in_batches(keys, _PART):
        items = [*engine.fetch(part).values()]
        reads = read_ahead(lambda item: _pixels(settings, item, encoder.resize), items, window=2 * encoder.batch_size)
        for item, found in zip(items, reads, strict=True):
            if isinstance(found, Skipped):
                skipped.append(found)
            else:
                yield item, found


def _generation(engine: Engine, made: Made) -> int:
    """Return the generation of these stamps, or a new one."""
    for entry in engine.generations():
        if dict(entry.stamps) == dict(made.stamps):
            if entry.live:
                raise ValueError(f"adapter must be another than that of the index, got the one of {engine.uri}")
            return entry.number
    return engine.create_generation(made.stamps, made.notes)


def _pixels(settings: Mapping[str, Any], item: Item, resize: Resize) -> Tensor | Skipped:
    """Read the picture of an item, which must be what it was when its other vectors were made."""
    try:
        place = file_of(settings, item)
        if place is None:
            return resize(picture_of(settings, item))
        _, content, digest = read_content(place)
        if digest != item.sha256:
            return Skipped(item.id, "its file has changed: `hystar-fast index sync` first")
        return pixels_of(content, str(place), resize)
    except (OSError, ValueError) as error:
        return Skipped(item.id, reason_of(error))
