"""Bring an index up to date with files: encode what is new, move and copy what is known, remove what has gone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hystar_fast.data.read_ahead import in_batches
from hystar_fast.index.added_files import sweep_added
from hystar_fast.index.compare_files import CONTENT, Changes, compare, compare_sources
from hystar_fast.index.encode_files import Described, Report, encode_batch, id_of, item_of, load_batches
from hystar_fast.index.engine import Engine, Item, key_of
from hystar_fast.index.generation_methods import Encoder
from hystar_fast.index.picture_files import state_of
from hystar_fast.index.skipped_files import read_skipped, write_skipped
from hystar_fast.index.sources import File, file_of, register

_COPIES = 500  # items of one transaction


def add(
    engine: Engine,
    places: Sequence[Path],
    open_encoder: Callable[[], Encoder],
    *,
    checksum: bool = False,
    described: Described | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> Report:
    """Add pictures, folders and lists to an index, see `hystar_fast.index.sources.register`.

    Every batch is in the index when it is done; a second call after a kill goes on. A file whose size and time of
    change are known is not opened, one whose content is known is not encoded.

    Args:
        engine: of the index.
        places: what to add.
        open_encoder: called if something must be encoded.
        checksum: read every file, although its size and time of change are known.
        described: captions and attributes.
        progress: called after every batch with the pictures done, the unreadable ones too, and their total.

    Raises:
        ValueError: a place does not exist, or the model is another than that of the index (StampMismatch).
        FloatingPointError: a picture has an embedding that is not finite.
    """
    found = register(engine, places)
    changes = compare(engine, found, passed_over=read_skipped(engine), checksum=checksum)
    return _apply(engine, changes, open_encoder, described or {}, progress)


def sync(
    engine: Engine,
    open_encoder: Callable[[], Encoder],
    *,
    checksum: bool = False,
    progress: Callable[[int, int], object] | None = None,
) -> Report:
    """Bring an index up to date with its sources; arguments and errors as `add`.

    New and changed pictures are encoded, a moved file keeps its vectors, and items whose files have gone are removed.
    Files that came over HTTP and that no item names are removed.
    """
    report = _apply(engine, plan(engine, checksum=checksum), open_encoder, {}, progress)
    sweep_added(engine)
    return report


def plan(engine: Engine, *, checksum: bool = False) -> Changes:
    """Return what `sync` would do."""
    return compare_sources(engine, passed_over=read_skipped(engine), checksum=checksum)


def _apply(
    engine: Engine,
    changes: Changes,
    open_encoder: Callable[[], Encoder],
    described: Described,
    progress: Callable[[int, int], object] | None,
) -> Report:
    report = Report(unchanged=changes.unchanged + len(changes.touched), skipped=[*changes.skipped])
    settings = engine.settings()
    for touched in in_batches(changes.touched, _COPIES):
        engine.upsert(_touched(engine, touched))
    wanted: list[tuple[File, str | None]] = [*((file, None) for file in changes.new), *changes.changed]
    gone = {*changes.removed}
    for copied in in_batches(changes.copied, _COPIES):
        wanted += _copy(engine, settings, copied, gone, report)
    replaced = _remove_replaced(engine, settings, changes.replaced)
    passed_over: dict[str, Any] = {}
    if wanted:
        encoder = open_encoder()
        done = 0
        for batch in load_batches(wanted, encoder, report.skipped, passed_over):
            encode_batch(engine, settings, encoder, batch, described, report)
            done += len(batch)
            if progress is not None:
                progress(done + len(passed_over), len(wanted))
        if progress is not None:
            progress(len(wanted), len(wanted))
    if gone:
        engine.remove([key_of(item) for item in changes.removed])
        report.removed = len(gone) - report.moved
    report.removed += replaced
    _describe(engine, described)
    write_skipped(engine, passed_over)
    return report


def _touched(engine: Engine, part: Sequence[tuple[File, str, str]]) -> list[Item]:
    held = engine.fetch([key_of(item) for _, item, _ in part])
    return [item_of(held[key_of(item)], file, digest) for file, item, digest in part if key_of(item) in held]


def _copy(
    engine: Engine, settings: Mapping[str, Any], part: Sequence[tuple[File, str, str]], gone: set[str], report: Report
) -> list[tuple[File, str | None]]:
    """Give files the vectors of items with the same content; return those for which these are no longer there."""
    held = engine.fetch([key_of(item) for _, item, _ in part])
    if settings["ids"] == CONTENT:
        return _move(engine, settings, part, held, report)
    again: list[tuple[File, str | None]] = []
    copies: list[Item] = []
    sources: list[Item] = []
    ids = [id_of(settings, file, digest) for file, _, digest in part]
    taken = engine.fetch([key_of(item_id) for item_id in ids])
    for item_id, (file, item, digest) in zip(ids, part, strict=True):
        old, other = held.get(key_of(item)), taken.get(key_of(item_id))
        place = None if other is None else file_of(settings, other)
        is_own = place is not None and str(place) == file.place
        is_free = place is None or is_own or state_of(place) is None
        if old is not None and old.sha256 == digest and is_free:
            words = other if other is not None and is_own else old  # an item keeps its own when its file changes
            copies.append(item_of(words, file, digest, item_id))
            sources.append(old)
        else:
            again.append((file, item_id if is_own else None))
    if copies:
        vectors = {view: engine.vectors([old.key for old in sources], view) for view in engine.stamps()}
        engine.upsert(copies, vectors)
    moved = {old.id for old in sources} & gone
    report.moved += len(moved)
    report.copied += len(copies) - len(moved)
    return again


def _move(
    engine: Engine,
    settings: Mapping[str, Any],
    part: Sequence[tuple[File, str, str]],
    held: Mapping[str, Item],
    report: Report,
) -> list[tuple[File, str | None]]:
    """Give items with ids by content the files that have it now; arguments and result as `_copy`."""
    again: list[tuple[File, str | None]] = []
    for file, item, digest in part:
        old = held.get(key_of(item))
        place = None if old is None else file_of(settings, old)
        if old is None:
            again.append((file, None))
        elif place is not None and state_of(place) == (old.size, old.mtime_ns):
            report.duplicates += 1
        else:
            engine.upsert([item_of(old, file, digest)])
            report.moved += 1
    return again


def _remove_replaced(engine: Engine, settings: Mapping[str, Any], replaced: Sequence[tuple[File, str]]) -> int:
    """Remove items with ids by content whose file has that of another item, unless they have got another file."""
    if settings["ids"] != CONTENT:
        return 0
    held = engine.fetch([key_of(item) for _, item in replaced])
    places = {item: str(file_of(settings, held[key_of(item)])) for _, item in replaced if key_of(item) in held}
    return engine.remove([key_of(item) for file, item in replaced if places.get(item) == file.place])


def _describe(engine: Engine, described: Described) -> None:
    """Give captions and attributes to items that were there before."""
    if not described:
        return
    known = [entry.key for entry in engine.known().values() if entry.path in described]
    for keys in in_batches(known, _COPIES):
        changed = []
        for item in engine.fetch(keys).values():
            words = {**described[item.path]}
            caption = str(words.pop("caption", item.caption))
            if (caption, words) != (item.caption, dict(item.attributes)):
                state = (item.size, item.mtime_ns, item.sha256)
                changed.append(Item(item.id, item.source, item.path, caption, words, *state))
        engine.upsert(changed)
