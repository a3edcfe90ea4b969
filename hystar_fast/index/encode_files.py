"""Read picture files, encode them and write them into an index, batch by batch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor

from hystar_fast.data.image_set import Skipped
from hystar_fast.data.read_ahead import THREADS, in_batches, read_ahead
from hystar_fast.index.compare_files import CONTENT
from hystar_fast.index.engine import Engine, Item, key_of
from hystar_fast.index.generation_methods import Encoder
from hystar_fast.index.picture_files import pixels_of, read_content, reason_of, state_of
from hystar_fast.index.skipped_files import FIELDS
from hystar_fast.index.sources import File, file_of

Described: TypeAlias = Mapping[str, Mapping[str, Any]]
"""Path of a picture -> its "caption" and attributes."""


@dataclass
class Report:
    """Counts of what was done, in pictures.

    Attributes:
        added, changed: pictures encoded for new items, and in place of those whose files have changed.
        unchanged: pictures that were there already, also those of which only the time of change is new.
        moved: pictures whose vectors were kept under another path.
        copied: pictures with the content of another one, whose vectors were copied.
        duplicates: files left out because their content is in the index (with ids by content).
        removed: items whose files have gone; without those that have moved.
        skipped: files that could not be read.
    """

    added: int = 0
    changed: int = 0
    unchanged: int = 0
    moved: int = 0
    copied: int = 0
    duplicates: int = 0
    removed: int = 0
    skipped: list[Skipped] = field(default_factory=list)


@dataclass(frozen=True)
class Loaded:
    """A file that was read: its state then, its SHA-256, and its pixels as the model takes them."""

    file: File
    replaces: str | None
    sha256: str
    pixels: Tensor


def load_batches(
    wanted: Sequence[tuple[File, str | None]],
    encoder: Encoder,
    skipped: list[Skipped],
    passed_over: dict[str, Any],
    *,
    threads: int = THREADS,
) -> Iterator[list[Loaded]]:
    """Read files ahead and yield batches of those that can be decoded.

    Args:
        wanted: files, and the ids of the items that they replace.
        encoder: says how pictures are resized and how many are a batch.
        skipped: gets an entry for each file that cannot be read.
        passed_over: gets what `write_skipped` needs of each.
        threads: that read.
    """

    def decoded() -> Iterator[Loaded]:
        window = 2 * encoder.batch_size
        reads = read_ahead(lambda entry: _load(*entry, encoder), wanted, window=window, threads=threads)
        for (file, _), loaded in zip(wanted, reads, strict=True):
            if isinstance(loaded, Skipped):
                skipped.append(loaded)
                values = (file.path, loaded.reason, file.size, file.mtime_ns)
                passed_over[file.place] = dict(zip(FIELDS, values, strict=True))
            else:
                yield loaded

    return in_batches(decoded(), encoder.batch_size)


def _load(file: File, replaces: str | None, encoder: Encoder) -> Loaded | Skipped:
    """Read a file once: its state, its hash and its pixels."""
    try:
        state, content, digest = read_content(file.place)
        pixels = pixels_of(content, file.place, encoder.resize)
    except (OSError, ValueError) as error:
        return Skipped(file.path, reason_of(error))
    return Loaded(replace(file, size=state[0], mtime_ns=state[1]), replaces, digest, pixels)


def encode_batch(
    engine: Engine,
    settings: Mapping[str, Any],
    encoder: Encoder,
    batch: Sequence[Loaded],
    described: Described,
    report: Report,
) -> None:
    """Encode a batch and write it in one transaction; a content that is in it twice is encoded once."""
    batch = _without_taken(engine, settings, batch, report)
    if not batch:
        return
    first = {loaded.sha256: loaded for loaded in reversed(batch)}
    row_of = {digest: row for row, digest in enumerate(first)}
    pixels = torch.stack([loaded.pixels for loaded in first.values()])
    vectors = encoder.encode(pixels, [loaded.file.path for loaded in first.values()])
    earlier = engine.fetch([key_of(loaded.replaces) for loaded in batch if loaded.replaces is not None])
    items: list[Item] = []
    outdated = []
    for loaded in batch:
        item_id = id_of(settings, loaded.file, loaded.sha256)
        old = earlier.get(key_of(loaded.replaces)) if loaded.replaces is not None else None
        if old is not None:
            items.append(item_of(old, loaded.file, loaded.sha256, item_id))
            report.changed += 1
            if old.id != item_id:
                outdated.append(old.key)
        else:
            items.append(_new_item(item_id, loaded, described.get(loaded.file.path, {})))
            report.added += 1
    if outdated:  # with ids by content; killed here, the next sync takes the files for new ones
        engine.remove(outdated)
    rows = torch.tensor([row_of[loaded.sha256] for loaded in batch])
    engine.upsert(items, {view: found[rows] for view, found in vectors.items()})


def _without_taken(
    engine: Engine, settings: Mapping[str, Any], batch: Sequence[Loaded], report: Report
) -> list[Loaded]:
    """Leave out files whose id is that of an item with another file, which is still there."""
    ids = [id_of(settings, loaded.file, loaded.sha256) for loaded in batch]
    held = {item.id: item for item in engine.fetch([key_of(item_id) for item_id in ids]).values()}
    places = {item_id: file_of(settings, item) for item_id, item in held.items()}
    kept: list[Loaded] = []
    taken: set[str] = set()
    outdated = []
    for item_id, loaded in zip(ids, batch, strict=True):
        place = places.get(item_id)
        is_other = place is not None and str(place) != loaded.file.place and state_of(place) is not None
        if item_id not in taken and not is_other:
            taken.add(item_id)
            kept.append(loaded)
        elif settings["ids"] == CONTENT:
            report.duplicates += 1
            if loaded.replaces not in (None, item_id):
                outdated.append(key_of(str(loaded.replaces)))
        else:
            reason = f"its id {item_id!r} is that of {place}: make an index with ids by content"
            report.skipped.append(Skipped(loaded.file.path, reason))
    if outdated:
        engine.remove(outdated)
    return kept


def _new_item(item_id: str, loaded: Loaded, words: Mapping[str, Any]) -> Item:
    file, attributes = loaded.file, {**words}
    caption = str(attributes.pop("caption", file.caption or file.path))
    state = (file.size, file.mtime_ns, loaded.sha256)
    return Item(item_id, file.source, file.path, caption, attributes, *state)


def item_of(old: Item, file: File, sha256: str, new_id: str | None = None) -> Item:
    """Return an item with another file; a caption that was the path follows it."""
    caption = file.path if old.caption == old.path else old.caption
    return Item(new_id or old.id, file.source, file.path, caption, old.attributes, file.size, file.mtime_ns, sha256)


def id_of(settings: Mapping[str, Any], file: File, sha256: str) -> str:
    """Return the id of a file: its path with the prefix of its source, or its content."""
    return sha256 if settings["ids"] == CONTENT else settings["sources"][file.source]["prefix"] + file.path
