"""``hystar-fast embed --shards`` and ``index load``: a corpus that many processes embed, and its index."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hystar_fast.cli.index_work import counted, show_report
from hystar_fast.cli.open_method import open_method
from hystar_fast.index.claims import Claims
from hystar_fast.index.embed_shards import CLAIMS, agree_on_plan, embed_shards, stamps_of
from hystar_fast.index.engine import FROZEN
from hystar_fast.index.generation_methods import encoder_with, save_generation, views_of
from hystar_fast.index.kept_adapters import ADAPTER_FOLDER
from hystar_fast.index.load_shards import load_shards, plan_in
from hystar_fast.index.open_index import create_engine, folder_for, has_index, open_engine
from hystar_fast.index.shard_files import Header, ShardFolder, read_shard
from hystar_fast.index.shard_plan import Plan, Source, read_plan
from hystar_fast.index.shard_progress import State
from hystar_fast.index.shard_timeline import draw_timeline
from hystar_fast.methods.adapter_files import load_method
from hystar_fast.methods.device import cores_of_process, select_device
from hystar_fast.methods.interface import Method
from hystar_fast.methods.suite import create_method
from hystar_fast.models.config import HystarConfig
from hystar_fast.terminal.console import Console, create_table
from hystar_fast.terminal.progress import Progress

_SHOWN = 4  # processes in a line of progress


@dataclass(frozen=True)
class ShardSettings:
    """Options of ``embed --shards``, by their names."""

    source: Path
    shards: Path
    adapter: Path | None
    shard_size: int | None
    retry_skipped: bool
    with_frozen: bool
    device: str


def run_embed_shards(settings: ShardSettings, console: Console, *, changes: dict[str, Any]) -> None:
    """Embed a corpus together with all other processes that are given the same folder, until all of it is done.

    Raises:
        ValueError: an option is wrong, or the folder holds the plan of another corpus or model.
        FloatingPointError: a picture has an embedding that is not finite.
    """
    source, out = Source.of(settings.source), settings.shards
    if out.exists() and not out.is_dir():
        raise ValueError(f"shards must be a folder, got the file {out}")
    earlier = read_plan(out)
    before = {} if earlier is None else ShardFolder(out, earlier).headers()
    device = select_device(settings.device)
    threads = cores_of_process()
    if "LOCAL_WORLD_SIZE" in os.environ:
        torch.set_num_threads(threads)  # torchrun leaves one to each process
    method = open_method(settings.adapter, None, changes, console)
    console.log_to(out)
    if source.folder != settings.source.resolve() and source.whole:
        console.print(f"embedding {source.folder}: the other pictures in {settings.source} are sketches of these")
    with_frozen = settings.with_frozen
    plan = agree_on_plan(
        settings.source,
        out,
        stamps_of(method, with_frozen=with_frozen),
        lambda folder: save_generation(method, folder, with_frozen=with_frozen),
        claims := Claims(out / CLAIMS),
        shard_size=settings.shard_size,
    )
    with _shown(console) as progress:
        embed_shards(
            plan,
            source.folder,
            out,
            lambda: encoder_with(views_of(method, with_frozen=with_frozen), device),
            claims,
            retry_skipped=settings.retry_skipped,
            threads=threads,
            progress=progress,
        )
    if not console.quiet:
        _say_end(plan, out, before, console)


@contextmanager
def _shown(console: Console) -> Iterator[Callable[[State], None] | None]:
    """Give the function that shows the work of all processes; None for a console that prints nothing."""
    if console.quiet:
        yield None
        return
    with Progress(console, transient=True, unit="pictures") as progress:
        task = progress.add_task("embed", total=None)

        def show(state: State) -> None:
            rates = [f"{process} {rate:.1f}/s" for process, rate in state.rates.items()]
            rates += [f"{process} silent for {seconds:.0f} s" for process, seconds in state.silent.items()]
            rest = f" and {len(rates) - _SHOWN} more" if len(rates) > _SHOWN else ""
            skipped = f", {state.skipped} skipped" if state.skipped else ""
            each = f" ({', '.join(rates[:_SHOWN])}{rest})" if rates else ""
            progress.update(task, description=f"embed{skipped}{each}", completed=state.done, total=state.total)

        yield show


def _say_end(plan: Plan, out: Path, before: dict[int, Header], console: Console) -> None:
    """Print what all processes have done since there were only the shards of `before`, and draw the timeline."""
    headers = ShardFolder(out, plan).headers()
    new = [header for number, header in headers.items() if before.get(number) != header]
    table = create_table("process", "shards", "pictures", "pictures/s", right=("shards", "pictures", "pictures/s"))
    for process in sorted({header.process for header in new}):
        mine = [header for header in new if header.process == process]
        encoded, seconds = sum(h.encoded for h in mine), sum(h.ended - h.started for h in mine)
        table.add_row(process, str(len(mine)), str(encoded), f"{encoded / max(seconds, 1e-3):.1f}")
    if new:
        console.print(table)
    left = [header for header in headers.values() if header.skipped]
    if left:
        _, shard = read_shard(out, left[0].number, plan)
        first = f"{shard.left[0].path}: {shard.left[0].reason}"
        console.print(f"skipped {sum(header.skipped for header in left)} pictures, the first: {first}")
        console.print("--retry-skipped tries these again")
    lost = plan.count - len(headers)
    if lost:
        console.print(f"{lost} of {plan.count} shards are missing: the same command without --retry-skipped makes them")
    if not headers:
        return
    pictures = sum(header.pictures for header in headers.values())
    console.print(f"{out} holds {pictures} pictures in {len(headers)} shards; {draw_timeline(headers.values(), out)}")
    console.print(f"next: hystar-fast index load NAME {out}")


def run_load(name: str, out: Path, console: Console) -> dict[str, Any]:
    """Load shards into an index, which is made if it is not there, and return the counts.

    Raises:
        ValueError: there are no shards, one is damaged, or the index is of another model (StampMismatch).
    """
    plan = plan_in(out)
    start = time.perf_counter()
    if not has_index(name):
        method = _method_in(out, plan, console)
        with folder_for(name) as folder:
            made = save_generation(method, folder, with_frozen=len(plan.stamps) > 1)
            create_engine(name, made, {"ids": "path"}, folder).close()
        console.print(f"made {name} for {method.name}")
    with open_engine(name) as engine:
        with counted(console, "load") as progress:
            report = load_shards(engine, out, plan, progress=progress)
        if report.known:
            console.print(f"{report.known} of {plan.count} shards were loaded before")
        if report.missing:
            console.print(
                f"{len(report.missing)} of {plan.count} shards are missing: make them with `hystar-fast embed --shards "
                f"{out}`, then load again"
            )
        counts = show_report(engine, report, console, start)
        if not plan.source.folder.is_dir():
            console.print(
                f"the pictures were in {plan.source.folder}, which is not there: `hystar-fast index move {name} "
                f"{plan.source.folder} NEW` says where they are"
            )
    return {**counts, "shards": report.shards, "missing_shards": len(report.missing)}


def _method_in(out: Path, plan: Plan, console: Console) -> Method:
    """Return the method whose adapter lies beside the shards."""
    if "adapter" in plan.notes:
        return load_method(out / ADAPTER_FOLDER)
    return create_method(FROZEN, HystarConfig.from_dict(plan.notes["frozen"]))
