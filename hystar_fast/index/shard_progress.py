"""The work of all processes on the shards of a folder, as the files in it show it."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from hystar_fast.index.claims import BEAT, Holder
from hystar_fast.index.shard_files import Header

SILENT = 3 * BEAT
"""Seconds after which a process is not counted among those that work."""


@dataclass(frozen=True)
class State:
    """The work that is done.

    Attributes:
        done, total: pictures, with those that cannot be read.
        skipped: pictures that cannot be read.
        rates: process -> pictures a second, of those that are at a shard now.
        silent: process -> for how many seconds it has not been heard of, of those that may be dead.
    """

    done: int
    total: int
    skipped: int
    rates: Mapping[str, float]
    silent: Mapping[str, float]


def state_of_work(
    sizes: Mapping[int, int], left: Collection[int], headers: Mapping[int, Header], holders: Iterable[Holder]
) -> State:
    """Return what is done of some shards.

    Args:
        sizes: shard -> pictures to be read.
        left: shards that are not done.
        headers: of the shards that are there.
        holders: of the claims.
    """
    rates, silent = dict[str, float](), dict[str, float]()
    going = 0
    for holder in holders:
        number = holder.name.rpartition("-")[2]
        if number.isdecimal() and int(number) in left:
            going += holder.done
            if holder.silent > SILENT:
                silent[holder.process] = holder.silent
            else:
                rates[holder.process] = holder.done / holder.seconds if holder.done else _last_rate(holder, headers)
    done = sum(size for number, size in sizes.items() if number not in left)
    skipped = sum(header.skipped for header in headers.values())
    total = sum(sizes.values())
    return State(min(done + going, total), total, skipped, dict(sorted(rates.items())), silent)


def _last_rate(holder: Holder, headers: Mapping[int, Header]) -> float:
    """Return the rate of a process in its last shard, while it has done nothing of the next one."""
    mine = [header for header in headers.values() if header.process == holder.process]
    return max(mine, key=lambda header: header.ended).rate if mine else 0.0
