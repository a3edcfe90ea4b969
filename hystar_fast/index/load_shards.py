"""Write the shards of a corpus into an index; a second call loads only what is new."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from hystar_fast.data.image_set import Skipped
from hystar_fast.data.read_ahead import in_batches
from hystar_fast.index.encode_files import Report, id_of, item_of
from hystar_fast.index.engine import LARGEST_BATCH, Engine, Item, key_of
from hystar_fast.index.picture_files import state_of
from hystar_fast.index.shard_files import Row, ShardFolder, read_shard
from hystar_fast.index.shard_plan import PLAN_FILE, Plan, read_plan
from hystar_fast.index.skipped_files import FIELDS, write_skipped
from hystar_fast.index.sources import File, file_of, joined, source_for
from hystar_fast.index.stamp import check_stamps

LOADED = "loaded"
"""The entry of the settings with the shards that an index has: plan -> tries of each shard, 0 if it is not loaded."""
_DIGITS = 16  # of the hash of a plan


@dataclass
class LoadReport(Report):
    """A report, with the shards that were loaded, those that the index had already, and those that are not there."""

    shards: int = 0
    known: int = 0
    missing: list[int] = field(default_factory=list)


def plan_in(out: Path) -> Plan:
    """Return the plan of a folder of shards.

    Raises:
        ValueError: there is none, or it is damaged.
    """
    plan = read_plan(out)
    if plan is None:
        raise ValueError(f"OUT must be a folder that `hystar-fast embed --shards` wrote, got {out} without {PLAN_FILE}")
    return plan


def load_shards(
    engine: Engine, out: Path, plan: Plan, *, progress: Callable[[int, int], object] | None = None
) -> LoadReport:
    """Write the shards of a plan into the live generation of an index.

    The index remembers each shard when all of it is written, so that a call after a kill goes on. A shard whose skipped
    files were tried again is loaded again. A picture that the index holds with the same content is left as it is, and
    so is one that the index has read later.

    Args:
        engine: of the index.
        out: the folder of the shards.
        plan: in it, see `plan_in`.
        progress: called after every batch with the pictures done and their total.

    Raises:
        StampMismatch: the vectors were made by another model than those of the index; the message names what differs.
        ValueError: a shard is damaged.
    """
    check_stamps(engine.stamps(), plan.stamps, engine.uri)
    source, folder, below = source_for(engine, plan.source.folder, whole=plan.source.whole, tars=plan.source.tars)
    headers = ShardFolder(out, plan).headers()
    name = plan.sha256[:_DIGITS]
    known = [*engine.settings().get(LOADED, {}).get(name, [0] * plan.count)]
    report = LoadReport(missing=[number for number in range(plan.count) if number not in headers])
    total = sum(header.pictures for header in headers.values())
    done = 0
    passed_over: dict[str, Any] = {}
    for number, header in headers.items():
        is_known = known[number] >= header.tries
        if is_known:
            report.known += 1
            done += header.pictures
            if not header.skipped:
                continue
        _, shard = read_shard(out, number, plan)
        for entry in shard.left:
            path = joined(below, entry.path)
            values = (path, entry.reason, entry.size, entry.mtime_ns)
            passed_over[os.path.join(folder, path)] = dict(zip(FIELDS, values, strict=True))
            report.skipped.append(Skipped(path, entry.reason))
        if is_known:
            continue
        for places in in_batches(range(len(shard.rows)), LARGEST_BATCH):
            rows = [replace(shard.rows[place], path=joined(below, shard.rows[place].path)) for place in places]
            vectors = {view: found[places[0] : places[-1] + 1] for view, found in shard.vectors.items()}
            _load(engine, source, folder, rows, vectors, report)
            done += len(rows)
            if progress is not None:
                progress(done, total)
        report.shards += 1
        known[number] = header.tries
        engine.update_settings(lambda settings: {**settings, LOADED: {**settings.get(LOADED, {}), name: known}})
    report.skipped += [Skipped(joined(below, entry.path), entry.reason) for entry in plan.skipped]
    write_skipped(engine, passed_over)
    return report


def _load(
    engine: Engine,
    source: str,
    folder: Path,
    rows: Sequence[Row],
    vectors: Mapping[str, torch.Tensor],
    report: LoadReport,
) -> None:
    """Write those of some rows that the index does not have, in one transaction."""
    settings = engine.settings()
    files = [
        File(source, row.path, os.path.join(folder, row.path), row.size, row.mtime_ns, row.caption) for row in rows
    ]
    ids = [id_of(settings, file, row.sha256) for file, row in zip(files, rows, strict=True)]
    held = engine.fetch([key_of(item_id) for item_id in ids])
    items: dict[str, Item] = {}
    places: list[int] = []
    for place, (item_id, file, row) in enumerate(zip(ids, files, rows, strict=True)):
        old = held.get(key_of(item_id))
        if item_id in items:
            report.duplicates += 1
        elif old is None:
            state = (row.size, row.mtime_ns, row.sha256)
            items[item_id] = Item(item_id, source, row.path, row.caption or row.path, {}, *state)
            report.added += 1
            places.append(place)
        elif old.sha256 == row.sha256 and (old.source, old.path) != (source, row.path):  # with ids by content
            report.duplicates += 1
        elif old.sha256 == row.sha256 or _is_current(settings, old):
            report.unchanged += 1
        else:
            items[item_id] = item_of(old, file, row.sha256, item_id)
            report.changed += 1
            places.append(place)
    if items:
        engine.upsert([*items.values()], {view: found[places] for view, found in vectors.items()})


def _is_current(settings: Mapping[str, Any], item: Item) -> bool:
    """Return whether the file of an item is still what the index has read."""
    place = file_of(settings, item)
    return place is not None and state_of(place) == (item.size, item.mtime_ns)
