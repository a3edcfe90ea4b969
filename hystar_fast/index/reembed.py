"""Embed the pictures of an index with another model, in a new generation beside the live one."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from hystar_fast.data.image_set import Skipped
from hystar_fast.data.images import Resize, decode_image, least_side
from hystar_fast.data.read_ahead import read_ahead
from hystar_fast.index.engine import ADAPTED, FROZEN, Engine, Item
from hystar_fast.index.generation_methods import Encoder, Made, encoder_of, save_generation
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
        ValueError: the index has no folder for the adapter, or is of this model already.
        FloatingPointError: a picture has an embedding that is not finite.
    """
    if engine.folder is None:
        raise ValueError(f"index must have a folder for the adapter, got {engine.uri}")
    live = engine.generation()
    made = save_generation(method, engine.folder, with_frozen={ADAPTED, FROZEN} <= {*live.views})
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
    encoder, settings = open_encoder(), engine.settings()
    for start in range(0, len(keys), _PART):
        items = [*engine.fetch(keys[start : start + _PART]).values()]
        reads = read_ahead(lambda item: _pixels(settings, item, encoder.resize), items, window=2 * encoder.batch_size)
        batch: list[tuple[Item, Tensor]] = []
        for place, (item, found) in enumerate(zip(items, reads, strict=True), 1):
            if isinstance(found, Skipped):
                done.skipped.append(found)
            else:
                batch.append((item, found))
            if batch and (len(batch) == encoder.batch_size or place == len(items)):
                chosen = [item for item, _ in batch]
                vectors = encoder.encode(torch.stack([pixels for _, pixels in batch]), [item.id for item in chosen])
                engine.upsert(chosen, vectors, number)
                done.encoded += len(batch)
                batch = []
                if progress is not None:
                    progress(done.encoded, len(keys))
    return done


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
        content = place.read_bytes()
        if hashlib.sha256(content).hexdigest() != item.sha256:
            return Skipped(item.id, "its file has changed: `hystar-fast index sync` first")
        return resize(decode_image(io.BytesIO(content), str(place), least=least_side(resize)))
    except OSError as error:
        return Skipped(item.id, error.strerror or str(error))
    except ValueError as error:
        return Skipped(item.id, str(error))
