"""Copy an index to another engine."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from hystar_fast.data.read_ahead import in_batches
from hystar_fast.index.address import without_password
from hystar_fast.index.engine import Engine, Generation, Item, key_of
from hystar_fast.index.generation_methods import Made
from hystar_fast.index.kept_adapters import adapter_place, copy_adapter, drop_adapter, keep_adapter
from hystar_fast.index.open_index import (
    COPY_OF,
    create_engine,
    folder_for,
    has_index,
    open_engine,
    open_unfinished,
)
from hystar_fast.index.stamp import check_stamps

PART = 500  # items of one transaction
_SAMPLED = 100  # vectors of a generation that are compared at the end


@dataclass
class Copied:
    """Counts of pictures, summed over the generations.

    Attributes:
        written: copied now.
        unchanged: were there.
        removed: items that a copy which was stopped had, and that the source has no longer.
    """

    written: int = 0
    unchanged: int = 0
    removed: int = 0


def copy_index(
    source_uri: str | Path, target_uri: str | Path, *, progress: Callable[[int, int], object] | None = None
) -> Copied:
    """Copy an index with its generations, adapters, styles and settings; the picture files stay where they are.

    Every batch is kept, so a call that was stopped goes on; until the end nothing else opens the new index. A second
    call takes over what was changed or added since.

    Args:
        source_uri, target_uri: as `open_engine` takes them; the target is made if it is not there.
        progress: called after every batch with the pictures done and their total.

    Raises:
        ValueError: the target holds other pictures, or the source was written meanwhile; StampMismatch if it is of
            another model.
    """
    if str(source_uri) == str(target_uri):
        raise ValueError(f"target must be another index than the source, got {without_password(str(source_uri))} twice")
    with open_engine(source_uri) as source:
        live = source.generation()
        if "warning" in live.notes:
            raise ValueError(f"source must be an index of the newest format: {live.notes['warning']}")
        with _target(source, live, target_uri) as target:
            entries = [live, *(entry for entry in source.generations() if not entry.live)]
            done = Copied(removed=_remove_others(source, target, entries))
            numbers = {entry.number: _generation(source, target, entry) for entry in entries}
            total = sum(entry.count for entry in entries)
            for entry in entries:
                for items, vectors in _lacking(source, target, entry, numbers[entry.number], done):
                    target.upsert(items, vectors, None if entry.live else numbers[entry.number])
                    done.written += len(items)
                    if progress is not None:
                        progress(done.written + done.unchanged, total)
            _copy_styles(source, target)
            for entry in entries:
                _compare(source, target, entry, numbers[entry.number])
            if target.settings() != source.settings():
                target.put_settings(source.settings())
            return done


def _target(source: Engine, live: Generation, uri: str | Path) -> Engine:
    """Return the engine that is written, a new one if there is none."""
    try:
        target = open_unfinished(uri) if has_index(uri) else _created(source, live, uri)
    except ValueError as error:
        try:
            target = _created(source, live, uri)  # as its creation was stopped
        except ValueError:
            raise ValueError(re.sub(r"^index\b", "target", str(error))) from error
    try:
        check_stamps(target.stamps(), live.stamps, target.uri)
    except BaseException:
        target.close()
        raise
    return target


def _created(source: Engine, live: Generation, uri: str | Path) -> Engine:
    notes = {**live.notes}
    with folder_for(uri) as folder:
        if "adapter" in notes:
            with adapter_place(source, str(notes["adapter"])) as place:
                kept, is_new = copy_adapter(place, folder)
            notes |= {"adapter": kept.name, "written": is_new}
        settings = {**source.settings(), COPY_OF: source.uri}
        return create_engine(uri, Made(live.stamps, notes), settings, folder)


def _remove_others(source: Engine, target: Engine, entries: Sequence[Generation]) -> int:
    """Remove what a copy that was stopped holds and its source no longer; refuse a whole index with other pictures."""
    known = source.known()
    others = [item for item in target.known() if item not in known]
    if COPY_OF not in target.settings():
        if others:
            raise ValueError(
                f"target must hold no other pictures than the source, but {target.uri} holds {len(others)}, such as "
                f"{others[0]!r}: copy to a new index, or remove them with `hystar-fast index remove`"
            )
        return 0
    stamps = [dict(entry.stamps) for entry in entries]
    for entry in target.generations():
        if not entry.live and dict(entry.stamps) not in stamps:
            target.drop(entry.number)
            drop_adapter(target, entry)
    return sum(target.remove([key_of(item) for item in part]) for part in in_batches(others, PART))


def _generation(source: Engine, target: Engine, entry: Generation) -> int:
    """Return the generation of the target with the stamps of one of the source, a new one if there is none."""
    for other in target.generations():
        if dict(other.stamps) == dict(entry.stamps):
            return other.number
    notes = {**entry.notes}
    if "adapter" in notes:
        with adapter_place(source, str(notes["adapter"])) as place:
            name, is_new = keep_adapter(target, place)
        notes |= {"adapter": name, "written": is_new}
    return target.create_generation(entry.stamps, notes)


def _lacking(
    source: Engine, target: Engine, entry: Generation, number: int, done: Copied
) -> Iterator[tuple[list[Item], dict[str, Tensor]]]:
    """Yield the items of a generation that the target has not, or has otherwise, with their vectors."""
    missing = {*target.missing(number)}
    for items, vectors in source.scan(entry.number):
        held = target.fetch([item.key for item in items])
        if entry.live:
            wanted = [i for i, item in enumerate(items) if item.key in missing or held.get(item.key) != item]
        else:  # an item that was changed meanwhile has no vector in another generation
            there = {key for key, item in held.items() if key in missing}
            wanted = [i for i, item in enumerate(items) if item.key in there and held[item.key].sha256 == item.sha256]
        done.unchanged += len(items) - len(wanted)
        for part in in_batches(wanted, PART):
            yield [items[i] for i in part], {view: found[torch.tensor(part)] for view, found in vectors.items()}


def _copy_styles(source: Engine, target: Engine) -> None:
    held = target.styles()
    for name, vector in source.styles().items():
        if name not in held or not torch.equal(held[name], vector):
            target.put_style(name, vector)


def _compare(source: Engine, target: Engine, entry: Generation, number: int) -> None:
    """Raise ValueError unless a generation has as many items in both, and some vectors are the same."""
    counts = source.generation(entry.number).count, target.generation(number).count
    missing = {*target.missing(number)}
    everything = source.keys()
    keys = [key for key in everything if key not in missing]
    chosen = random.Random(0).sample(keys, min(_SAMPLED, len(keys)))
    are_same = counts[0] == counts[1] and all(
        torch.allclose(source.vectors(chosen, view, entry.number), target.vectors(chosen, view, number), atol=1e-6)
        for view in entry.views
    )
    if not are_same:
        raise ValueError(
            f"source must not be written while it is copied, but generation {entry.number} has {counts[0]} pictures, "
            f"and its copy {counts[1]} or others: repeat the command to take over the rest"
        )
