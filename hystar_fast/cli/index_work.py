"""The work of ``hystar-fast index``."""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

import typer

from hystar_fast.cli.open_method import open_method
from hystar_fast.data.image_set import Skipped
from hystar_fast.data.text_files import parse_json, read_lines
from hystar_fast.index.added_files import drop_added
from hystar_fast.index.compare_files import CONTENT, PATH
from hystar_fast.index.copy_index import copy_index
from hystar_fast.index.encode_files import Described, Report
from hystar_fast.index.engine import Engine, Item, key_of
from hystar_fast.index.generation_methods import encoder_of, save_generation
from hystar_fast.index.kept_adapters import drop_adapter
from hystar_fast.index.local import LocalEngine
from hystar_fast.index.open_index import (
    create_engine,
    folder_for,
    folder_of_uri,
    has_index,
    is_on_server,
    open_engine,
)
from hystar_fast.index.picture_files import state_of
from hystar_fast.index.reembed import reembed
from hystar_fast.index.skipped_files import SKIPPED_FILE
from hystar_fast.index.sources import file_of
from hystar_fast.index.sync import add, plan, sync
from hystar_fast.index.where import Where
from hystar_fast.methods.device import select_device
from hystar_fast.terminal.console import Console, create_table
from hystar_fast.terminal.progress import Progress

_ASKS_ABOVE = 100  # pictures
_SKIPPED_SHOWN = 3


@contextmanager
def counted(console: Console, name: str) -> Iterator[Callable[[int, int], None]]:
    """Show progress while a block runs; give the function that it calls with the pictures done and their total."""
    with Progress(console, transient=True, unit="pictures") as progress:
        task = progress.add_task(name, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


def run_create(
    name: str, adapter: Path | None, console: Console, *, changes: dict[str, Any], with_frozen: bool, ids: str
) -> None:
    """Make an empty index."""
    if ids not in (PATH, CONTENT):
        raise ValueError(f"ids must be {PATH} or {CONTENT}, got {ids!r}")
    if has_index(name):
        raise ValueError(f"index must be new, but {name} holds an index")
    method = open_method(adapter, None, changes, console)
    with folder_for(name) as folder:
        made = save_generation(method, folder, with_frozen=with_frozen)
        engine = create_engine(name, made, {"ids": ids}, folder)
    with engine:
        stamp = next(iter(engine.stamps().values())).sha256
        shown = f"made {engine.uri} for {method.name} (stamp {stamp[:12]})"
        console.print(f"{shown}; next: hystar-fast index add {shlex.quote(engine.uri)} FOLDER")


def run_add(
    name: str, sources: list[Path], attributes: Path | None, console: Console, *, checksum: bool, device: str
) -> dict[str, Any]:
    """Add pictures, and return the counts."""
    where = select_device(device)
    described = {} if attributes is None else read_attributes(attributes)
    with open_engine(name) as engine:
        start = time.perf_counter()
        with counted(console, "add") as progress:
            encoder = encoder_of(engine, where)
            report = add(engine, sources, encoder, checksum=checksum, described=described, progress=progress)
        _say_strangers(engine, described, console)
        return show_report(engine, report, console, start)


def run_sync(name: str, console: Console, *, checksum: bool, dry_run: bool, device: str) -> dict[str, Any]:
    """Bring an index up to date with its sources, and return the counts."""
    where = select_device(device)
    with open_engine(name) as engine:
        start = time.perf_counter()
        if dry_run:
            changes = plan(engine, checksum=checksum)
            counts = {
                "new": len(changes.new),
                "changed": len(changes.changed),
                "moved or copied": len(changes.copied),
                "unchanged": changes.unchanged + len(changes.touched),
                "gone": len(changes.removed),
                "skipped": len(changes.skipped),
            }
            console.print("sync would find: " + ", ".join(f"{n} {word}" for word, n in counts.items()))
            return counts
        with counted(console, "sync") as progress:
            report = sync(engine, encoder_of(engine, where), checksum=checksum, progress=progress)
        return show_report(engine, report, console, start)


def show_report(engine: Engine, report: Report, console: Console, start: float) -> dict[str, Any]:
    """Print what was done since `start` (of `time.perf_counter`), and return the counts."""
    counts = {entry.name: getattr(report, entry.name) for entry in fields(Report) if entry.name != "skipped"}
    counts["skipped"] = len(report.skipped)
    console.print(", ".join(f"{n} {word}" for word, n in counts.items() if n) or "nothing to do")
    _say_skipped(report.skipped, console, whole=engine.folder is None)
    if report.skipped and engine.folder is not None and (engine.folder / SKIPPED_FILE).exists():
        console.print(f"all that cannot be read: {engine.folder / SKIPPED_FILE}")
    console.print(f"{engine.uri} holds {engine.count()} pictures ({time.perf_counter() - start:.1f} s)")
    return {**counts, "pictures": engine.count()}


def _say_skipped(skipped: Sequence[Skipped], console: Console, *, whole: bool = False) -> None:
    """Print the first files that were skipped; the whole list where there is no file of them."""
    for entry in skipped if whole else skipped[:_SKIPPED_SHOWN]:
        console.print(f"skipped {entry.path}: {entry.reason}")


def _say_strangers(engine: Engine, described: Described, console: Console) -> None:
    """Print that attributes name pictures which the index has not."""
    strangers = {*described} - {entry.path for entry in engine.known().values()} if described else ()
    if strangers:
        console.print(
            f"attributes must be of pictures in the index, but {len(strangers)} of {len(described)} paths are of none, "
            f"such as {min(strangers)!r}: a path begins below the folder of its source"
        )


def read_attributes(path: Path) -> Described:
    """Read captions and attributes: a JSON object a line, with the "path" of a picture.

    Raises:
        ValueError: a line is no such object; the message has its number.
    """
    found = {}
    for number, line in read_lines(path):
        entry = parse_json(line)
        if not isinstance(entry, dict) or not isinstance(entry.get("path"), str):
            raise ValueError(
                f'attributes must hold a JSON object with a "path" on each line, got {line[:80]!r} in {path}:{number}'
            )
        found[entry.pop("path")] = entry
    return found


def run_remove(name: str, ids: list[str], where: str | None, console: Console, *, yes: bool) -> None:
    """Remove items by id and by a filter."""
    if bool(ids) == (where is not None):
        raise ValueError("exactly one of --id and --where must be given")
    with open_engine(name) as engine:
        if where is not None:
            keys = engine.keys(Where.parse(where))
        else:
            keys = [key_of(item) for item in ids]
            held = engine.fetch(keys)
            lost = next((item for item, key in zip(ids, keys, strict=True) if key not in held), None)
            if lost is not None:
                raise ValueError(f"ids must be in the index, got {lost!r}")
        if len(keys) > _ASKS_ABOVE and not yes:
            try:
                agreed = typer.confirm(f"Remove {len(keys)} of {engine.count()} pictures?")
            except typer.Abort as error:
                raise ValueError(f"--yes must be given to remove {len(keys)} pictures without being asked") from error
            if not agreed:
                return
        gone = [*engine.fetch(keys).values()]
        console.print(f"removed {engine.remove(keys)} pictures; {engine.uri} holds {engine.count()}")
        drop_added(engine, gone)
        _say_that_sync_adds(engine, gone, console)


def _say_that_sync_adds(engine: Engine, gone: Sequence[Item], console: Console) -> None:
    """Print how many of the items that were removed the next sync adds again, as a source still has their files."""
    settings = engine.settings()
    places = [file_of(settings, item) for item in gone if settings["sources"].get(item.source, {}).get("whole")]
    there = sum(place is not None and state_of(place) is not None for place in places)
    if there:
        console.print(
            f"the files of {there} of them are still in their folders, and `hystar-fast index sync` adds these again: "
            "move or delete the files to keep them out"
        )


def run_reembed(name: str, adapter: Path | None, console: Console, *, changes: dict[str, Any], device: str) -> None:
    """Fill a new generation."""
    where = select_device(device)
    with open_engine(name) as engine:
        method = open_method(adapter, None, changes, console)
        with counted(console, "reembed") as progress:
            done = reembed(engine, method, where, progress=progress)
        _say_skipped(done.skipped, console)
        lost = len(engine.missing(done.generation))
        console.print(f"embedded {done.encoded} pictures for generation {done.generation}, {lost} are missing")
        if not lost:
            console.print(f"next: hystar-fast index switch {shlex.quote(engine.uri)} {done.generation}")


def run_switch(name: str, generation: int | None, console: Console) -> None:
    """Make a generation live."""
    with open_engine(name) as engine:
        number = engine.generations()[-1].number if generation is None else generation
        engine.switch(number)
        console.print(f"{engine.uri} is searched in generation {number}")


def run_drop(name: str, generation: int, console: Console) -> None:
    """Remove a generation and its adapter."""
    with open_engine(name) as engine:
        dropped = engine.generation(generation)
        engine.drop(generation)
        drop_adapter(engine, dropped)
        console.print(f"removed generation {generation} of {engine.uri}")


def run_info(name: str, console: Console) -> dict[str, Any]:
    """Print what an index holds, and return it."""
    with open_engine(name) as engine:
        settings = engine.settings()
        generations = [
            {
                "generation": entry.number,
                "live": entry.live,
                "pictures": entry.count,
                "views": {view: {"stamp": stamp.sha256, **stamp.values} for view, stamp in entry.stamps.items()},
                "notes": dict(entry.notes),
            }
            for entry in engine.generations()
        ]
        found = {"index": engine.uri, "pictures": engine.count(), **settings, "generations": generations}
        console.print(f"{engine.uri}: {engine.count()} pictures, ids by {settings['ids']}")
        for source, entry in settings["sources"].items():
            console.print(f"source {source}: {entry.get('folder', 'the embedded drawings')}")
        table = create_table("generation", "view", "method", "dimension", "pictures", "stamp", right=("pictures",))
        for entry in engine.generations():
            for view, stamp in entry.stamps.items():
                number = f"{entry.number} (live)" if entry.live else str(entry.number)
                row = (number, view, stamp.values.get("method", "?"), stamp.dimension, entry.count, stamp.sha256[:12])
                table.add_row(*map(str, row))
        console.print(table)
        return found


def run_verify(name: str, console: Console, *, repair: bool) -> bool:
    """Print every damage of an index; return whether it is whole now."""
    with open_engine(name) if is_on_server(name) else LocalEngine.for_repair(folder_of_uri(name)) as engine:
        found, shown = engine.verify(repair=repair), shlex.quote(engine.uri)
        for line in found:
            console.print(line)
        if not found:
            console.print(f"{engine.uri} is whole: {engine.count()} pictures")
            return True
        if not repair:
            console.print(
                f"{len(found)} damages; `hystar-fast index verify {shown} --repair` removes them, and "
                f"`hystar-fast index sync {shown}` embeds their pictures again"
            )
            return False
        console.print(f"{engine.uri} holds {engine.count()} pictures; next: hystar-fast index sync {shown}")
        return not engine.verify()


def run_accelerate(name: str, console: Console, *, off: bool) -> None:
    """Build the graphs of the live generation of a local index, or remove all graphs."""
    engine = LocalEngine(folder_of_uri(name))
    with engine:
        if off:
            console.print(f"removed {engine.graphs.drop()} graphs; every search of {name} is exact")
            return
        for view in engine.stamps():
            with counted(console, f"graph of {view}") as progress:
                engine.build_graph(view, progress)
        console.print(f"{name} is searched by a graph of {engine.count()} pictures; build it again after many changes")


def run_copy(source: str, target: str, console: Console) -> None:
    """Copy an index to another engine."""
    start = time.perf_counter()
    with counted(console, "copy") as progress:
        done = copy_index(source, target, progress=progress)
    with open_engine(target) as engine:
        counts = {"copied": done.written, "unchanged": done.unchanged, "removed": done.removed}
        console.print(", ".join(f"{n} {word}" for word, n in counts.items() if n) or "nothing to do")
        console.print(f"{engine.uri} holds {engine.count()} pictures ({time.perf_counter() - start:.1f} s)")


def run_move(name: str, old: str, new: Path, console: Console) -> None:
    """Change the folder of a source."""
    if not new.is_dir():
        raise ValueError(f"NEW must be a folder, but {new} does not exist or is none")
    with open_engine(name) as engine:
        settings = engine.settings()
        wanted = {old, os.path.abspath(old), os.path.realpath(old)}
        sources = settings["sources"]
        found = next((source for source, entry in sources.items() if {source, entry.get("folder")} & wanted), None)
        if found is None:
            there = ", ".join(str(entry.get("folder", source)) for source, entry in sources.items())
            raise ValueError(f"OLD must be the folder of a source ({there or 'there is none'}), got {old}")
        folder = {"folder": str(new.resolve())}

        def moved(now: dict[str, Any]) -> dict[str, Any]:
            return {**now, "sources": {**now["sources"], found: {**now["sources"][found], **folder}}}

        engine.update_settings(moved)
        console.print(f"{found} is {new.resolve()} now")
