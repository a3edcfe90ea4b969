"""Embed a corpus with any number of processes on any machines that share a folder; none waits for the work of another.

The first process writes the plan, every process takes shards that nobody holds, and the last one ends when all are
there. A process that dies loses the shard it held, which another takes over. A second run does what is missing.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from hystar_fast.data.image_set import Skipped
from hystar_fast.data.read_ahead import THREADS
from hystar_fast.index.claims import Claim, Claims, process_name
from hystar_fast.index.encode_files import load_batches
from hystar_fast.index.generation_methods import Encoder, Made, save_generation
from hystar_fast.index.picture_files import state_of
from hystar_fast.index.shard_files import Header, Left, Row, Shard, ShardFolder, read_shard, write_shard
from hystar_fast.index.shard_plan import PLAN_FILE, SHARD_SIZE, Plan, Source, read_plan, write_plan
from hystar_fast.index.shard_progress import State, state_of_work
from hystar_fast.index.sources import File
from hystar_fast.index.stamp import Stamp, check_stamps
from hystar_fast.methods.interface import Method

CLAIMS = "claims"
"""The folder of the claims in that of the shards."""
_LOOKS = 1.0  # seconds between two looks at the work of all processes


def stamps_of(method: Method, *, with_frozen: bool = False) -> Mapping[str, Stamp]:
    """Return view -> stamp of the vectors that a method makes; nothing is kept."""
    with tempfile.TemporaryDirectory() as folder:
        return save_generation(method, Path(folder), with_frozen=with_frozen).stamps


def agree_on_plan(
    place: Path,
    out: Path,
    stamps: Mapping[str, Stamp],
    save: Callable[[Path], Made],
    claims: Claims,
    *,
    shard_size: int | None = None,
) -> Plan:
    """Return the plan in a folder, which the first process makes.

    Args:
        place: a folder of pictures or of tars, or a tar.
        out: the folder of the shards; it is created if needed.
        stamps: of the model of this process.
        save: writes the adapter into `out` if this process makes the plan, see `save_generation`.
        claims: in `out`.
        shard_size: pictures a shard; by default that of the plan, or `SHARD_SIZE`.

    Raises:
        ValueError: the plan is for other pictures, another model (StampMismatch) or another size; or it is damaged; or
            `out` lies in the folder of the pictures.
    """
    source = Source.of(place)
    if source.whole and out.resolve().is_relative_to(source.folder):
        raise ValueError(f"shards must lie outside of {source.folder}, whose pictures are embedded, got {out}")
    out.mkdir(parents=True, exist_ok=True)
    while (plan := read_plan(out)) is None:
        claim = claims.take(["plan"])
        if claim is None:
            time.sleep(claims.beat / 10)
            continue
        with claim:
            if read_plan(out) is None:
                write_plan(place, out, save, shard_size=shard_size or SHARD_SIZE)
    check_stamps(plan.stamps, stamps, str(out / PLAN_FILE))
    if shard_size not in (None, plan.shard_size):
        raise ValueError(f"shard_size must be that of {out / PLAN_FILE}, {plan.shard_size}, got {shard_size}")
    plan.check_source(source.folder)
    return plan


def embed_shards(
    plan: Plan,
    folder: Path,
    out: Path,
    open_encoder: Callable[[], Encoder],
    claims: Claims,
    *,
    retry_skipped: bool = False,
    threads: int = THREADS,
    progress: Callable[[State], object] | None = None,
) -> None:
    """Embed the shards that are missing together with all other processes, until all are there.

    Args:
        plan: in `out`.
        folder: where the source of the plan is on this machine.
        out: the folder of the shards.
        open_encoder: called if this process has something to encode.
        claims: in `out`.
        retry_skipped: instead, try again the files that could not be read, once.
        threads: that read pictures.
        progress: called about every second with what all processes have done.

    Raises:
        FloatingPointError: a picture has an embedding that is not finite.
        ValueError: a shard with skipped files is damaged.
    """
    worker = _Worker(plan, folder, out, open_encoder, claims, threads, progress)
    wanted = dict.fromkeys(range(plan.count), 0)
    worker.sizes = {number: len(plan.paths_of(number)) for number in wanted}
    if retry_skipped:
        headers = worker.shards.headers().items()
        wanted = {number: header.tries for number, header in headers if header.skipped}
        worker.sizes = {number: header.skipped for number, header in headers if header.skipped}
    while left := worker.left(wanted):
        claim = claims.take(f"shard-{number:06}" for number in left)
        if claim is None:
            worker.look(wanted)
            time.sleep(min(_LOOKS, claims.beat))
            continue
        with claim:
            number = int(claim.name.rpartition("-")[2])
            if number in worker.left(wanted):  # another process may just have done it
                worker.embed(number, claim, wanted)
    worker.look(wanted, now=True)


class _Worker:
    """The work of one process."""

    def __init__(
        self,
        plan: Plan,
        folder: Path,
        out: Path,
        open_encoder: Callable[[], Encoder],
        claims: Claims,
        threads: int,
        progress: Callable[[State], object] | None,
    ) -> None:
        self.plan, self.folder, self.out, self.claims = plan, folder, out, claims
        self.shards = ShardFolder(out, plan)
        self.sizes: dict[int, int] = {}
        self._open, self._threads, self._progress = open_encoder, threads, progress
        self._encoder: Encoder | None = None
        self._looked = 0.0
        self._first = hash(process_name()) % max(1, plan.count)

    def left(self, wanted: Mapping[int, int]) -> list[int]:
        """Return the shards that were tried no more than so many times; each process begins at another one."""
        headers = self.shards.headers()
        found = [number for number, tries in wanted.items() if number not in headers or headers[number].tries <= tries]
        return sorted(found, key=lambda number: (number - self._first) % self.plan.count)

    def look(self, wanted: Mapping[int, int], *, now: bool = False) -> None:
        """Tell the caller what all processes have done, if it is time."""
        if self._progress is not None and (now or time.monotonic() - self._looked >= _LOOKS):
            left = {*self.left(wanted)}
            self._progress(state_of_work(self.sizes, left, self.shards.headers(), self.claims.holders()))
            self._looked = time.monotonic()

    def embed(self, number: int, claim: Claim, wanted: Mapping[int, int]) -> None:
        """Embed a shard, or try its skipped files again if it is there."""
        started = time.time()
        self._encoder = self._encoder or self._open()
        earlier, tries = Shard([], [], {}), 0
        paths = self.plan.paths_of(number)
        if number in self.shards.headers():
            header, earlier = read_shard(self.out, number, self.plan)
            paths, tries = [entry.path for entry in earlier.left], header.tries
        skipped: list[Skipped] = []
        passed_over: dict[str, Any] = {}
        rows: list[Row] = []
        parts: list[Mapping[str, torch.Tensor]] = [earlier.vectors] if earlier.rows else []
        files = [(file, None) for file in self.plan.files(paths, self.folder)]
        for batch in load_batches(files, self._encoder, skipped, passed_over, threads=self._threads):
            pixels = torch.stack([loaded.pixels for loaded in batch])
            parts.append(self._encoder.encode(pixels, [loaded.file.path for loaded in batch]))
            rows += [_row(loaded.file, loaded.sha256) for loaded in batch]
            claim.done = len(rows) + len(skipped)
            self.look(wanted)
        if not rows:
            self.plan.check_source(self.folder)  # which may just have been unmounted
        left = [Left(entry["path"], entry["reason"], *_state(place)) for place, entry in passed_over.items()]
        whole = Shard([*earlier.rows, *rows], left, _joined(parts, self.plan.stamps))
        counts = (len(whole.rows), len(left), len(rows), tries + 1)
        written = Header(self.plan.sha256, number, process_name(), started, time.time(), *counts)
        write_shard(self.out, written, whole)


def _state(place: str) -> tuple[int, int]:
    try:
        return state_of(place) or (0, 0)
    except OSError:
        return 0, 0


def _row(file: File, sha256: str) -> Row:
    return Row(file.path, file.size, file.mtime_ns, sha256, file.caption)


def _joined(parts: Sequence[Mapping[str, torch.Tensor]], stamps: Mapping[str, Stamp]) -> dict[str, torch.Tensor]:
    empty = {view: torch.empty(0, stamp.dimension) for view, stamp in stamps.items()}
    return {view: torch.cat([none, *(part[view] for part in parts)]) for view, none in empty.items()}
